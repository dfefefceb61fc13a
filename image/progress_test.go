// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/store"
)

// slowReader returns 100 bytes a second.
type slowReader struct{ left int }

func (r *slowReader) Read(p []byte) (int, error) {
	if r.left--; r.left < 0 {
		return 0, io.EOF
	}
	time.Sleep(time.Second)
	return copy(p, make([]byte, 100)), nil
}

// A pull that takes long says so every few seconds, and one that does not says nothing.
func TestProgressLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		ref, err := registry.ParseReference("registry.example/a:1")
		if err != nil {
			t.Fatal(err)
		}
		layer := registry.Layer{Descriptor: ocispec.Descriptor{Digest: digest.FromString("1"), Size: 1200}}
		here := registry.Layer{Descriptor: ocispec.Descriptor{Digest: digest.FromString("2"), Size: 500}}
		img := &registry.Image{Digest: digest.FromString("i"), Manifest: digest.FromString("m"), Layers: []registry.Layer{here, layer}}
		inStore := func(d digest.Digest) (store.Layer, bool) { return store.Layer{}, d == here.Descriptor.Digest }
		var tr tracker
		for _, seconds := range []int{4, 12} {
			p := tr.begin(ref, img, inStore, log)
			p.done(0)
			time.Sleep(time.Millisecond) // reads and lines are not at the same time
			if _, err := io.Copy(io.Discard, tr.layer(layer).blob(io.NopCloser(&slowReader{left: seconds}))); err != nil {
				t.Fatal(err)
			}
			if got := p.snapshot(); got.Bytes != int64(seconds*100) || got.Total != 1200 || got.LayersDone != 1 || got.Layers != 2 {
				t.Errorf("after %d s: %+v", seconds, got)
			}
			p.end()
		}
		var lines []string
		for line := range strings.Lines(out.String()) {
			_, rest, _ := strings.Cut(line, "msg=")
			lines = append(lines, rest)
		}
		want := []string{}
		for _, n := range []int{400, 900} {
			want = append(want, fmt.Sprintf("%q reference=registry.example/a:1 digest=%s bytes=%d of=1200 bytes_per_second=%d layers_done=1 layers=2\n",
				"image is being pulled", img.Digest, n, map[int]int{400: 80, 900: 100}[n]))
		}
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
		if len(tr.pulls)+len(tr.layers) != 0 {
			t.Errorf("pulls %v and layers %v are left", tr.pulls, tr.layers)
		}
	})
}

// Two images have a layer in common, which comes slowly: it counts in both pulls, and once in the totals.
func TestProgressOfSharedLayer(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	plain := map[string][]byte{}
	layer := func(name, kind string) built {
		plain[name] = tarball(t, map[string]string{name: random(300_000)})
		return build(t, r, kind, plain[name], nil)
	}
	one, both, two := layer("one", "none"), layer("both", "none"), layer("two", "gzip")
	addImage(t, r, "v1", one, both)
	addImage(t, r, "v2", both, both, two)
	half := int64(len(both.blob) / 2)
	release := make(chan struct{})
	r.Hook = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, both.desc.Digest.String()) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(both.blob)))
		_, _ = w.Write(both.blob[:half])
		_ = http.NewResponseController(w).Flush()
		<-release
		_, _ = w.Write(both.blob[half:])
		return true
	}
	s, _ := service(t, r, nil)
	results := make(chan error, 2)
	for _, tag := range []string{"v1", "v2"} {
		go func() { results <- mount(t.Context(), s, tag, r.Reference(tag), "/"+tag) }()
	}
	want := map[string]Pull{
		r.Reference("v1"): {Bytes: one.desc.Size + half, Total: one.desc.Size + both.desc.Size, LayersDone: 1, Layers: 2},
		r.Reference("v2"): {Bytes: two.desc.Size + half, Total: two.desc.Size + both.desc.Size, LayersDone: 1, Layers: 3},
	}
	until(t, "half of the layer is here", func() bool {
		got := map[string]Pull{}
		for _, p := range s.Progress() {
			if p.Manifest == "" || p.Started.IsZero() || p.Unpacked < 300_000 {
				return false
			}
			got[p.Reference] = Pull{Bytes: p.Bytes, Total: p.Total, LayersDone: p.LayersDone, Layers: p.Layers}
		}
		return cmp.Equal(got, want)
	})
	close(release)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if err := mount(t.Context(), s, "again", r.Reference("v1"), "/again"); err != nil {
		t.Error(err)
	}
	if err := mount(t.Context(), s, "none", r.Reference("v3"), "/none"); err == nil {
		t.Error("an image that is not there was mounted")
	}
	totals := Totals{
		Fetched:  one.desc.Size + both.desc.Size + two.desc.Size,
		Unpacked: int64(len(plain["one"]) + len(plain["both"]) + len(plain["two"])),
		Pulled:   2, Cached: 1, Failed: 1, Reused: 2,
	}
	if diff := cmp.Diff(totals, s.Totals()); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
	if left := s.Progress(); len(left) != 0 {
		t.Errorf("pulls are left: %+v", left)
	}
	layers, space, err := s.Space()
	if err != nil || layers < 900_000 || space.Total == 0 {
		t.Errorf("layers have %d bytes in %+v, %v", layers, space, err)
	}
}

// A layer that is resumed counts once, and so does one that is read again up to where it was.
func TestProgressOfResume(t *testing.T) {
	needRoot(t)
	for how, ranges := range map[string]bool{"ranges": true, "no ranges": false} {
		t.Run(how, func(t *testing.T) {
			r := registrytest.New(t)
			l := build(t, r, "gzip", tarball(t, map[string]string{"f": random(500_000)}), nil)
			addImage(t, r, "v1", l)
			cutting(r, l, 3, ranges)
			s, _ := service(t, r, nil)
			if err := mount(t.Context(), s, "c1", r.Reference("v1"), "/c1"); err != nil {
				t.Fatal(err)
			}
			if got := s.Totals(); got.Fetched != l.desc.Size || got.Pulled != 1 || got.Failed != 0 {
				t.Errorf("%+v, want %d bytes", got, l.desc.Size)
			}
		})
	}
}

// A pull that fails is counted as such, and leaves nothing that is under way.
func TestProgressOfFailure(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	l := build(t, r, "none", tarball(t, map[string]string{"f": "x"}), nil)
	addImage(t, r, "v1", l)
	changed := bytes.Clone(l.blob)
	changed[len(changed)/2] ^= 1
	r.SetBlob(l.desc.Digest, changed)
	s, _ := service(t, r, nil)
	if err := mount(t.Context(), s, "c1", r.Reference("v1"), "/c1"); err == nil {
		t.Error("a changed layer was mounted")
	}
	if got := s.Totals(); got.Failed != 1 || got.Pulled != 0 || got.Fetched != l.desc.Size {
		t.Errorf("%+v", got)
	}
	if left := s.Progress(); len(left) != 0 {
		t.Errorf("pulls are left: %+v", left)
	}
}
