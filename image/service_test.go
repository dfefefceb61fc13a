// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/store"
)

func TestMount(t *testing.T) {
	needRoot(t)
	key := bytes.Repeat([]byte{7}, 32)
	for _, kind := range []string{"none", "gzip", "zstd"} {
		for name, k := range map[string][]byte{"plain": nil, "encrypted": key} {
			t.Run(kind+" "+name, func(t *testing.T) {
				r := registrytest.New(t)
				r.Auth = "bearer"
				base := build(t, r, kind, tarball(t, map[string]string{"file": "lower", "base": strings.Repeat("base ", 50_000)}), k)
				top := build(t, r, kind, tarball(t, map[string]string{"file": "upper"}), k)
				addImage(t, r, "v1", base, top)
				s, m := service(t, r, func(c *Config) { c.Auth, c.Keys = r.AuthJSON(), keyring(key) })
				if err := mount(t.Context(), s, "c1", r.Reference("v1"), "/target"); err != nil {
					t.Fatal(err)
				}
				if got := m.read(t, "/target", "file"); got != "upper" {
					t.Errorf("file is %q, want the upper layer's", got)
				}
				if got := m.read(t, "/target", "base"); got != strings.Repeat("base ", 50_000) {
					t.Errorf("base has %d bytes", len(got))
				}
				if layers, staging := stored(t, s); len(layers) != 2 || len(staging) != 0 {
					t.Errorf("layers %v, staging %v", layers, staging)
				}
				if err := s.Unmount(t.Context(), "c1"); err != nil || len(m.targets) != 0 {
					t.Errorf("Unmount: %v, mounts %v", err, m.targets)
				}
			})
		}
	}
}

// Every way in which a layer can be wrong: the mount fails with an error that says how, and no layer can be seen.
func TestBadLayers(t *testing.T) {
	needRoot(t)
	key := bytes.Repeat([]byte{7}, 32)
	content := tarball(t, map[string]string{"file": strings.Repeat("some content ", 5000)})
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	// republish stores other bytes as the layer, with the digest that they have.
	republish := func(r *registrytest.Registry, l *built, blob []byte) {
		annotations := l.desc.Annotations
		l.desc = r.AddBlob(l.desc.MediaType, blob)
		l.desc.Annotations = annotations
	}
	for _, tt := range []struct {
		name   string
		kind   string
		key    []byte
		keys   []byte
		change func(r *registrytest.Registry, l *built)
		limits Limits
		want   string
	}{
		{name: "wrong content", kind: "gzip", change: func(r *registrytest.Registry, l *built) {
			_, other := compress(t, "gzip", tarball(t, map[string]string{"file": "evil"}))
			r.SetBlob(l.desc.Digest, append(other, make([]byte, len(l.blob)-len(other))...))
		}, want: "has digest"},
		{name: "bit flip in gzip", kind: "gzip", change: func(r *registrytest.Registry, l *built) { r.SetBlob(l.desc.Digest, flip(l.blob, 40)) }, want: "has digest"},
		{name: "bit flip in zstd", kind: "zstd", change: func(r *registrytest.Registry, l *built) { r.SetBlob(l.desc.Digest, flip(l.blob, 40)) }, want: "has digest"},
		{name: "bit flip in content", kind: "none", change: func(r *registrytest.Registry, l *built) { r.SetBlob(l.desc.Digest, flip(l.blob, 1000)) }, want: "has digest"},
		{name: "bit flip in padding", kind: "none", change: func(r *registrytest.Registry, l *built) {
			r.SetBlob(l.desc.Digest, flip(l.blob, len(l.blob)-1))
		}, want: "has digest"},
		{name: "bit flip in ciphertext", kind: "gzip", key: key, keys: key, change: func(r *registrytest.Registry, l *built) {
			r.SetBlob(l.desc.Digest, flip(l.blob, 40))
		}, want: "has digest"},
		{name: "truncated", kind: "gzip", change: func(r *registrytest.Registry, l *built) {
			r.SetBlob(l.desc.Digest, l.blob[:len(l.blob)-1])
		}, want: "its manifest says"},
		{name: "empty", kind: "gzip", change: func(r *registrytest.Registry, l *built) { r.SetBlob(l.desc.Digest, nil) }, want: "0 bytes"},
		{name: "longer", kind: "none", change: func(r *registrytest.Registry, l *built) {
			r.SetBlob(l.desc.Digest, append(bytes.Clone(l.blob), 0))
		}, want: "larger than"},
		{name: "missing", kind: "gzip", change: func(_ *registrytest.Registry, l *built) { l.desc.Digest = digest.FromString("nothing") }, want: "not found"},
		{name: "HMAC wrong", kind: "gzip", key: key, keys: key, change: func(r *registrytest.Registry, l *built) {
			republish(r, l, flip(l.blob, len(l.blob)-1))
		}, want: "does not match its HMAC"},
		{name: "HMAC wrong at the start", kind: "none", key: key, keys: key, change: func(r *registrytest.Registry, l *built) {
			republish(r, l, flip(l.blob, 3))
		}, want: "does not match its HMAC"},
		{name: "HMAC wrong in the padding", kind: "none", key: key, keys: key, change: func(r *registrytest.Registry, l *built) {
			republish(r, l, flip(l.blob, len(l.blob)-1))
		}, want: "does not match its HMAC"},
		{name: "key missing", kind: "gzip", key: key, want: "no key " + keyURI + " in this guest"},
		{name: "key wrong", kind: "gzip", key: key, keys: bytes.Repeat([]byte{8}, 32), want: "is not the one that the layer was encrypted with"},
		{name: "diff_id wrong", kind: "gzip", change: func(_ *registrytest.Registry, l *built) { l.diffID = digest.FromString("other") }, want: "does not match its diff_id"},
		{name: "diff_id wrong and encrypted", kind: "zstd", key: key, keys: key, change: func(_ *registrytest.Registry, l *built) {
			l.diffID = digest.FromString("other")
		}, want: "does not match its diff_id"},
		{name: "data after gzip", kind: "gzip", change: func(r *registrytest.Registry, l *built) {
			republish(r, l, append(bytes.Clone(l.blob), "a trailer that is no gzip member"...))
		}, want: "gzip"},
		{name: "not compressed", kind: "gzip", change: func(r *registrytest.Registry, l *built) { republish(r, l, content) }, want: "gzip"},
		{name: "not encrypted", kind: "gzip", key: key, keys: key, change: func(r *registrytest.Registry, l *built) {
			_, plain := compress(t, "gzip", content)
			republish(r, l, plain)
		}, want: "does not match its HMAC"},
		{name: "encryption not said", kind: "gzip", key: key, keys: key, change: func(_ *registrytest.Registry, l *built) {
			l.desc.MediaType = strings.TrimSuffix(l.desc.MediaType, "+encrypted")
		}, want: "gzip"},
		{name: "encrypted for jwe", kind: "gzip", key: key, keys: key, change: func(_ *registrytest.Registry, l *built) {
			l.desc.Annotations = map[string]string{"org.opencontainers.image.enc.keys.jwe": "x"}
		}, want: "org.opencontainers.image.enc.keys.jwe"},
		{name: "media type", kind: "gzip", change: func(_ *registrytest.Registry, l *built) { l.desc.MediaType += "+x" }, want: "media type"},
		{name: "blob limit", kind: "gzip", limits: Limits{Blob: 100}, want: "at most 100 are allowed"},
		{name: "unpacked limit", kind: "gzip", limits: Limits{Unpacked: 50_000}, want: "more than 50000 bytes"},
		{name: "file limit", kind: "gzip", limits: Limits{Files: 1}, change: func(r *registrytest.Registry, l *built) {
			*l = build(t, r, "gzip", tarball(t, map[string]string{"a": "", "b": ""}), nil)
		}, want: "more than 1 files"},
		{name: "bomb", kind: "gzip", change: func(r *registrytest.Registry, l *built) {
			*l = build(t, r, "gzip", append(tarball(t, nil), make([]byte, RatioFloor)...), nil)
		}, want: "layer exceeds a limit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := registrytest.New(t)
			l := build(t, r, tt.kind, content, tt.key)
			if tt.change != nil {
				tt.change(r, &l)
			}
			addImage(t, r, "v1", l)
			s, m := service(t, r, func(c *Config) { c.Keys, c.Limits = keyring(tt.keys), tt.limits })
			err := mount(t.Context(), s, "c1", r.Reference("v1"), "/target")
			contains(t, err, tt.want)
			if layers, staging := stored(t, s); len(layers) != 0 || len(staging) != 0 {
				t.Errorf("after the failure: layers %v, staging %v", layers, staging)
			}
			if len(m.targets) != 0 {
				t.Errorf("after the failure %v is mounted", m.targets)
			}
			if err := s.Unmount(t.Context(), "c1"); err != nil {
				t.Errorf("Unmount after the failure: %v", err)
			}
		})
	}
}

func TestBlobWithoutEnd(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	l := build(t, r, "none", tarball(t, map[string]string{"file": "x"}), nil)
	addImage(t, r, "v1", l)
	r.Hook = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, l.desc.Digest.String()) {
			return false
		}
		for chunk := l.blob; ; chunk = make([]byte, 1<<16) {
			if _, err := w.Write(chunk); err != nil {
				return true
			}
		}
	}
	s, _ := service(t, r, nil)
	contains(t, mount(t.Context(), s, "c1", r.Reference("v1"), "/target"), "larger than")
	if layers, staging := stored(t, s); len(layers)+len(staging) != 0 {
		t.Errorf("layers %v, staging %v", layers, staging)
	}
}

func TestCache(t *testing.T) {
	needRoot(t)
	key := bytes.Repeat([]byte{7}, 32)
	r := registrytest.New(t)
	l := build(t, r, "gzip", tarball(t, map[string]string{"f": "secret"}), key)
	desc := addImage(t, r, "v1", l)
	have := key
	s, m := service(t, r, func(c *Config) {
		c.Keys = func(ctx context.Context, uri string) ([]byte, error) { return keyring(have)(ctx, uri) }
	})
	mount := func(id, ref string) error { return mount(t.Context(), s, id, ref, "/"+id) }
	if err := mount("c1", r.Reference("v1")); err != nil {
		t.Fatal(err)
	}
	before := r.Requests("")
	if err := mount("c2", r.Reference("@"+desc.Digest.String())); err != nil {
		t.Error(err)
	}
	if n := r.Requests(""); n != before {
		t.Errorf("a cached digest took %d requests", n-before)
	}
	if err := mount("c3", r.Reference("v1")); err != nil {
		t.Error(err)
	}
	if n := r.Requests("GET"); n != 3 { // manifest, config, layer
		t.Errorf("%d GET requests for three mounts, want 3", n)
	}
	if got := r.Requests("HEAD"); got != 2 {
		t.Errorf("the tag was resolved %d times, want 2", got)
	}
	// Whoever says of a blob that it is not encrypted, or has another diff_id, does not get at the cached plaintext.
	plain := l
	plain.desc.MediaType, plain.desc.Annotations = strings.TrimSuffix(l.desc.MediaType, "+encrypted"), nil
	addImage(t, r, "evil", plain)
	contains(t, mount("c4", r.Reference("evil")), "diff_id")
	other := l
	other.diffID = digest.FromString("other")
	addImage(t, r, "evil2", other)
	contains(t, mount("c5", r.Reference("evil2")), "diff_id")
	have = nil
	if err := mount("c6", r.Reference("v1")); !errors.Is(err, ErrNoKey) {
		t.Errorf("a cached layer without its key: %v, want ErrNoKey", err)
	}
	if len(m.targets) != 3 {
		t.Errorf("mounted: %v", m.targets)
	}
	r.CloseClientConnections()
	r.Close()
	if err := mount("c7", r.Reference("v1")); err == nil {
		t.Error("a tag was mounted though no registry says what it means")
	}
}

func TestReferencesAndIDs(t *testing.T) {
	r := registrytest.New(t)
	s, m := service(t, r, nil)
	contains(t, mount(t.Context(), s, "c1", "busybox", "/c1"), "does not name its registry")
	contains(t, mount(t.Context(), s, "c1", r.Reference("v9"), "/c1"), "not found")
	for _, id := range []string{"", ".", "..", "../x", "a/b", "-x", "a b", "ä", strings.Repeat("x", 129), "a\x00"} {
		if err := mount(t.Context(), s, id, r.Reference("v1"), "/c1"); !errors.Is(err, store.ErrContainerID) {
			t.Errorf("id %.20q: %v", id, err)
		}
		if err := s.Unmount(t.Context(), id); err != nil {
			t.Errorf("Unmount of id %.20q: %v", id, err)
		}
	}
	if n := r.Requests(""); n != 1 || len(m.targets) != 0 {
		t.Errorf("%d requests, mounts %v", n, m.targets)
	}
}

func TestMountPause(t *testing.T) {
	r := registrytest.New(t)
	s, m := service(t, r, func(c *Config) { c.PauseRootfs = "/cloister/pause/rootfs" })
	p, err := s.MountPause(t.Context(), "c1", "/c1")
	if err != nil || !slices.Equal(p.Args, []string{"/pause"}) || p.Cwd != "/" {
		t.Fatalf("MountPause: %+v, %v", p, err)
	}
	if lower := m.targets["/c1"]; !slices.Equal(lower, []string{"/cloister/pause/rootfs"}) {
		t.Errorf("lower folders %v", lower)
	}
	if _, err := s.MountPause(t.Context(), "c1", "/c1"); !errors.Is(err, store.ErrMounted) {
		t.Errorf("the same container again: %v", err)
	}
	if err := s.Unmount(t.Context(), "c1"); err != nil || len(m.targets) != 0 {
		t.Errorf("Unmount: %v, %v", err, m.targets)
	}
	m.fail = errors.New("no overlay")
	if _, err := s.MountPause(t.Context(), "c1", "/c1"); err == nil {
		t.Error("a failed mount is no error")
	}
	if left, err := os.ReadDir(filepath.Join(s.config.Root, "containers")); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	m.fail = nil
	if _, err := s.MountPause(t.Context(), "c1", "/c1"); err != nil {
		t.Errorf("after a failed mount: %v", err)
	}
}

// The cached part of the answer must not depend on time: New starts from nothing, whatever lies in its folder.
func TestNewEmptiesTheStore(t *testing.T) {
	root := t.TempDir()
	planted := filepath.Join(root, "layers", "sha256", strings.Repeat("0", 64))
	if err := os.MkdirAll(planted, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := os.Stat(planted); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a planted layer is still there: %v", err)
	}
	for _, c := range []Config{{}, {Root: "relative"}, {Root: "/with,comma"}, {Root: root, Auth: []byte("{")}} {
		if s, err := New(c); err == nil {
			s.Close()
			t.Errorf("New(%+v) succeeded", c)
		}
	}
}

// Threat: a library panics over a layer, in a goroutine that no request handler guards. Seen: an error, nothing is left
// of it, and the next pull works.
func TestPanicIsAnError(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	key := bytes.Repeat([]byte{7}, 32)
	addImage(t, r, "v1", build(t, r, "gzip", tarball(t, map[string]string{"a": "b"}), key))
	broken := true
	s, _ := service(t, r, func(c *Config) {
		good := keyring(key)
		c.Keys = func(ctx context.Context, uri string) ([]byte, error) {
			if broken {
				panic("broken")
			}
			return good(ctx, uri)
		}
	})
	contains(t, mount(t.Context(), s, "c1", r.Reference("v1"), t.TempDir()), "internal error")
	broken = false
	if err := mount(t.Context(), s, "c1", r.Reference("v1"), t.TempDir()); err != nil {
		t.Error(err)
	}
}
