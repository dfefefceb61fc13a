// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/unpack"
)

// gate lets requests for a blob wait.
type gate struct {
	blob    string
	asked   chan struct{}
	release chan struct{}
	once    sync.Once
}

func newGate(r *registrytest.Registry, l built) *gate {
	g := &gate{blob: l.desc.Digest.String(), asked: make(chan struct{}), release: make(chan struct{})}
	r.Hook = func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.HasSuffix(req.URL.Path, g.blob) {
			g.once.Do(func() { close(g.asked) })
			<-g.release
		}
		return false
	}
	return g
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 10_000 {
		if f() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("no end of waiting: %s", what)
}

// The caller's time is up, as kubelet's is, and it asks again: during the pull it joins, after it all is there.
func TestPullOutlivesItsCaller(t *testing.T) {
	needRoot(t)
	for name, join := range map[string]bool{"joined": true, "done": false} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			l := build(t, r, "gzip", tarball(t, map[string]string{"f": "x"}), nil)
			desc := addImage(t, r, "v1", l)
			g := newGate(r, l)
			s, m := service(t, r, nil)
			ctx, cancel := context.WithCancel(t.Context())
			gone := make(chan error, 1)
			go func() { gone <- mount(ctx, s, "c1", r.Reference("v1"), "/c1") }()
			<-g.asked
			cancel()
			err := <-gone
			contains(t, err, "the pull goes on")
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the caller got %v", err)
			}
			second := make(chan error, 1)
			if join {
				go func() { second <- mount(t.Context(), s, "c1", r.Reference("v1"), "/c1") }()
				until(t, "the second caller joins", func() bool { return waiting(s, 1) })
				close(g.release)
			} else {
				close(g.release)
				until(t, "the pull ends", func() bool { return waiting(s, 0) })
				go func() { second <- mount(t.Context(), s, "c1", r.Reference("@"+desc.Digest.String()), "/c1") }()
			}
			if err := <-second; err != nil {
				t.Fatal(err)
			}
			if n := r.Requests("GET /v2/" + registrytest.Repository + "/blobs/" + g.blob); n != 1 {
				t.Errorf("the layer was fetched %d times", n)
			}
			if got := m.read(t, "/c1", "f"); got != "x" {
				t.Errorf("f is %q", got)
			}
		})
	}
}

// Close ends a pull that nobody waits for, and leaves nothing of it.
func TestCloseEndsAbandonedPulls(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	l := build(t, r, "gzip", tarball(t, map[string]string{"f": "x"}), nil)
	addImage(t, r, "v1", l)
	g := newGate(r, l)
	s, _ := service(t, r, nil)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- mount(ctx, s, "c1", r.Reference("v1"), "/c1") }()
	<-g.asked
	cancel()
	contains(t, <-gone, "the pull goes on")
	s.Close()
	close(g.release)
	if layers, staging := stored(t, s); len(layers)+len(staging) != 0 {
		t.Errorf("layers %v, staging %v", layers, staging)
	}
	if err := mount(t.Context(), s, "c1", r.Reference("v1"), "/c1"); err == nil {
		t.Error("Mount after Close succeeded")
	}
}

// cutting serves a blob's first bytes only, a number of times, and ranges if it is to.
func cutting(r *registrytest.Registry, l built, times int32, ranges bool) *atomic.Int32 {
	requests := new(atomic.Int32)
	r.Hook = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, l.desc.Digest.String()) {
			return false
		}
		n := requests.Add(1)
		var from int
		if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from); err == nil && ranges {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(l.blob)-1, len(l.blob)))
			w.Header().Set("Content-Length", fmt.Sprint(len(l.blob)-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			from = 0
			w.Header().Set("Content-Length", fmt.Sprint(len(l.blob)))
		}
		if n > times {
			_, _ = w.Write(l.blob[from:])
			return true
		}
		_, _ = w.Write(l.blob[from : len(l.blob)*int(n)/int(times+1)])
		panic(http.ErrAbortHandler)
	}
	return requests
}

// A connection that drops in the middle of a layer is no reason to begin anew: hash, decryption and unpacking go on.
func TestResumeInTheMiddle(t *testing.T) {
	needRoot(t)
	key := bytes.Repeat([]byte{7}, 32)
	content := strings.Repeat("0123456789", 100_000)
	for _, kind := range []string{"none", "gzip", "zstd"} {
		for name, k := range map[string][]byte{"plain": nil, "encrypted": key} {
			for how, ranges := range map[string]bool{"ranges": true, "no ranges": false} {
				t.Run(kind+" "+name+" "+how, func(t *testing.T) {
					r := registrytest.New(t)
					l := build(t, r, kind, tarball(t, map[string]string{"f": content}), k)
					addImage(t, r, "v1", l)
					requests := cutting(r, l, 3, ranges)
					s, m := service(t, r, func(c *Config) { c.Keys = keyring(key) })
					if err := mount(t.Context(), s, "c1", r.Reference("v1"), "/c1"); err != nil {
						t.Fatal(err)
					}
					if got := m.read(t, "/c1", "f"); got != content {
						t.Errorf("f has %d bytes", len(got))
					}
					if requests.Load() != 4 {
						t.Errorf("%d requests", requests.Load())
					}
				})
			}
		}
	}
}

func TestImageLimits(t *testing.T) {
	needRoot(t)
	for name, tt := range map[string]struct {
		limits Limits
		files  map[string]string
		want   string
	}{
		"image":      {Limits{Image: 10_000}, nil, "layers have more than 10000 bytes together"},
		"layers":     {Limits{Layers: 1}, nil, "2 layers, at most 1 are allowed"},
		"unpacked":   {Limits{ImageUnpacked: 15_000}, nil, "layers take more than 15000 bytes"},
		"one layer":  {Limits{Unpacked: 7_000}, nil, "more than 7000 bytes"},
		"path":       {Limits{Path: 20}, map[string]string{"a/name/of/twenty-two/b": ""}, "longer than 20 bytes"},
		"depth":      {Limits{Depth: 3}, map[string]string{"a/b/c/d": ""}, "more than 3 folders"},
		"names path": {Limits{}, map[string]string{strings.Repeat("d/", 300) + "x": ""}, "more than 256 folders"},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			files := map[string]string{"f": random(6000)}
			maps.Copy(files, tt.files)
			addImage(t, r, "v1", build(t, r, "none", tarball(t, files), nil), build(t, r, "none", tarball(t, map[string]string{"g": random(6000)}), nil))
			s, m := service(t, r, func(c *Config) { c.Limits = tt.limits })
			contains(t, mount(t.Context(), s, "c1", r.Reference("v1"), "/c1"), tt.want)
			if _, staging := stored(t, s); len(staging) != 0 || len(m.targets) != 0 {
				t.Errorf("left: staging %v, mounts %v", staging, m.targets)
			}
		})
	}
	if err := (Limits{}.withDefaults()).check(&registry.Image{Layers: make([]registry.Layer, registry.MaxLayers)}); err != nil {
		t.Error(err)
	}
	if unpack.DefaultDepth >= unpack.DefaultPath {
		t.Error("a path that is deep enough is too long first")
	}
}

// A mirror is used first. If it has another layer under the digest, the registry itself is asked.
func TestMirrors(t *testing.T) {
	needRoot(t)
	for name, bad := range map[string]bool{"good mirror": false, "bad mirror": true} {
		t.Run(name, func(t *testing.T) {
			r, mirror := registrytest.New(t), registrytest.New(t)
			var l built
			for _, place := range []*registrytest.Registry{r, mirror} {
				l = build(t, place, "gzip", tarball(t, map[string]string{"f": "x"}), nil)
				addImage(t, place, "v1", l)
			}
			if bad {
				other := bytes.Clone(l.blob)
				other[20] ^= 1
				mirror.SetBlob(l.desc.Digest, other)
			}
			conf := fmt.Sprintf("[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\n", r.Host(), mirror.Host())
			s, m := service(t, r, func(c *Config) {
				c.Registries = []byte(conf)
				c.CA.AddCert(mirror.Certificate())
			})
			if err := mount(t.Context(), s, "c1", r.Reference("v1"), "/c1"); err != nil {
				t.Fatal(err)
			}
			if got := m.read(t, "/c1", "f"); got != "x" {
				t.Errorf("f is %q", got)
			}
			if n := r.Requests(""); n != map[bool]int{false: 0, true: 1}[bad] {
				t.Errorf("the registry got %d requests", n)
			}
		})
	}
	for conf, want := range map[string]string{
		"[[registry]]\nlocation = 'a.example'\ninsecure = true": "not allowed", "x": "registries.conf",
	} {
		_, err := New(Config{Root: t.TempDir(), Registries: []byte(conf)})
		contains(t, err, want)
	}
	s, err := New(Config{Root: t.TempDir(), Registries: []byte("[[registry]]\nlocation = 'a.example'\nblocked = true")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := mount(t.Context(), s, "c1", "a.example/b:1", "/c1"); !errors.Is(err, registry.ErrBlocked) {
		t.Errorf("error %v, want ErrBlocked", err)
	}
}

// With Keep, layers outlive the process, and nothing else does.
func TestKeep(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	desc := addImage(t, r, "v1", build(t, r, "gzip", tarball(t, map[string]string{"f": "x"}), nil))
	root := filepath.Join(t.TempDir(), "images")
	for i, want := range []int{3, 2, 3} { // manifest, config and layer; manifest and config; all again
		s, m := service(t, r, func(c *Config) { c.Root, c.Keep = root, i < 2 })
		before := r.Requests("GET")
		if err := mount(t.Context(), s, "c1", r.Reference("@"+desc.Digest.String()), "/c1"); err != nil {
			t.Fatal(err)
		}
		if got := m.read(t, "/c1", "f"); got != "x" {
			t.Errorf("f is %q", got)
		}
		if n := r.Requests("GET") - before; n != want {
			t.Errorf("process %d made %d requests, want %d", i, n, want)
		}
		if left, err := os.ReadDir(filepath.Join(root, "containers")); err != nil || len(left) != 1 {
			t.Errorf("containers: %v, %v", left, err)
		}
		s.Close()
	}
}

// Two images of two registries have a layer in common. That one of the registries does not give it away is no reason
// for the other image to fail.
func TestSharedLayerOfAnotherRegistry(t *testing.T) {
	needRoot(t)
	bad, good := registrytest.New(t), registrytest.New(t)
	var l built
	for _, r := range []*registrytest.Registry{bad, good} {
		l = build(t, r, "gzip", tarball(t, map[string]string{"f": "x"}), nil)
		addImage(t, r, "v1", l)
	}
	g := newGate(bad, l)
	bad.SetBlob(l.desc.Digest, []byte("something else"))
	s, m := service(t, good, func(c *Config) { c.CA.AddCert(bad.Certificate()) })
	first := make(chan error, 1)
	go func() { first <- mount(t.Context(), s, "c1", bad.Reference("v1"), "/c1") }()
	<-g.asked
	second := make(chan error, 1)
	go func() { second <- mount(t.Context(), s, "c2", good.Reference("v1"), "/c2") }()
	until(t, "the second pull waits for the first one's layer", func() bool {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		for _, fl := range s.flights.byID {
			return fl.waiters == 2
		}
		return false
	})
	close(g.release)
	if err := <-first; !errors.Is(err, registry.ErrDigest) {
		t.Errorf("the bad registry's image: %v", err)
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if got := m.read(t, "/c2", "f"); got != "x" {
		t.Errorf("f is %q", got)
	}
}

// A layer whose root is opaque hides every layer below it, also after the store was opened anew. overlayfs heeds no such
// mark on the root of a layer.
func TestOpaqueRoot(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	below := build(t, r, "gzip", tarball(t, map[string]string{"below": "x", "f": "x"}), nil)
	opaque := build(t, r, "gzip", tarball(t, map[string]string{".wh..wh..opq": "", "f": "y"}), nil)
	above := build(t, r, "gzip", tarball(t, map[string]string{"above": "z"}), nil)
	desc := addImage(t, r, "v1", below, opaque, above)
	addImage(t, r, "v2", opaque, below)
	root := filepath.Join(t.TempDir(), "images")
	for range 2 {
		s, m := service(t, r, func(c *Config) { c.Root, c.Keep = root, true })
		for target, ref := range map[string]string{"/c1": "@" + desc.Digest.String(), "/c2": "v2"} {
			if err := mount(t.Context(), s, target[1:], r.Reference(ref), target); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(m.targets["/c1"]); n != 2 {
			t.Errorf("%d layers are mounted, want the opaque one and the one above", n)
		}
		if got := m.read(t, "/c1", "f") + m.read(t, "/c1", "above"); got != "yz" {
			t.Errorf("the layers have %q", got)
		}
		if n := len(m.targets["/c2"]); n != 2 {
			t.Errorf("%d layers are mounted, want the one above the opaque one, too", n)
		}
		s.Close()
	}
}
