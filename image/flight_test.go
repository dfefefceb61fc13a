// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/registry"
)

func TestFlightIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[int]
		var runs atomic.Int32
		var wg sync.WaitGroup
		release := make(chan struct{})
		for range 10 {
			wg.Go(func() {
				v, err := f.do(t.Context(), "a", func(context.Context) (int, error) {
					<-release
					return int(runs.Add(1)), nil
				})
				if v != 1 || err != nil {
					t.Errorf("do: %d, %v", v, err)
				}
			})
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		if v, err := f.do(t.Context(), "a", func(context.Context) (int, error) { return 2, nil }); v != 2 || err != nil {
			t.Errorf("a finished run is handed out again: %d, %v", v, err)
		}
		f.close()
	})
}

func TestFlightOutlivesOneCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[string]
		release := make(chan struct{})
		fn := func(ctx context.Context) (string, error) {
			select {
			case <-release:
				return "done", nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
		first, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := f.do(first, "a", fn)
			gone <- err
		}()
		synctest.Wait()
		stays := make(chan string, 1)
		go func() {
			v, err := f.do(t.Context(), "a", fn)
			if err != nil {
				t.Error(err)
			}
			stays <- v
		}()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("the caller that went away got %v", err)
		}
		close(release)
		if v := <-stays; v != "done" {
			t.Errorf("the caller that stayed got %q", v)
		}
		f.close()
	})
}

func TestFlightEndsWithLastCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[int]
		ctx, cancel := context.WithCancel(t.Context())
		ended := false
		result := make(chan error, 1)
		go func() {
			_, err := f.do(ctx, "a", func(ctx context.Context) (int, error) {
				<-ctx.Done()
				ended = true
				return 0, ctx.Err()
			})
			result <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("do: %v", err)
		}
		if !ended {
			t.Error("do returned while the run went on")
		}
		f.close()
	})
}

// Two containers want the same image at once: every blob is fetched once, also if the one that came first gives up.
func TestConcurrentMounts(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	l := build(t, r, "gzip", tarball(t, map[string]string{"f": strings.Repeat("x", 1000)}), nil)
	addImage(t, r, "v1", l, l, build(t, r, "zstd", tarball(t, map[string]string{"g": "y"}), nil))
	asked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.Hook = func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.HasSuffix(req.URL.Path, l.desc.Digest.String()) {
			once.Do(func() { close(asked) })
			<-release
		}
		return false
	}
	s, m := service(t, r, nil)
	first, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- s.Mount(first, "c1", r.Reference("v1"), "/c1") }()
	<-asked
	var wg sync.WaitGroup
	for _, id := range []string{"c2", "c3"} {
		wg.Go(func() {
			if err := s.Mount(t.Context(), id, r.Reference("v1"), "/"+id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		})
	}
	for !waiting(s, flightID(registry.Layer{Descriptor: l.desc, DiffID: l.diffID}), 3*2) { // three mounts, each with the layer twice
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the mount that was given up: %v", err)
	}
	close(release)
	wg.Wait()
	if n := r.Requests("GET /v2/" + registrytest.Repository + "/blobs/" + l.desc.Digest.String()); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
	for _, target := range []string{"/c2", "/c3"} {
		if got := m.read(t, target, "g"); got != "y" {
			t.Errorf("%s: g is %q", target, got)
		}
		if n := len(m.targets[target]); n != 2 {
			t.Errorf("%s has %d lower folders, want each layer once", target, n)
		}
	}
	if len(m.targets) != 2 {
		t.Errorf("mounted: %v", m.targets)
	}
	if layers, staging := stored(t, s); len(layers) != 2 || len(staging) != 0 {
		t.Errorf("layers %v, staging %v", layers, staging)
	}
}

func TestCloseStopsPulls(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	addImage(t, r, "v1", build(t, r, "gzip", tarball(t, nil), nil))
	asked, release := make(chan struct{}), make(chan struct{})
	config := true
	var mu sync.Mutex
	r.Hook = func(_ http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		mu.Lock()
		isLayer := !config
		config = false
		mu.Unlock()
		if isLayer {
			close(asked)
			<-release
		}
		return false
	}
	s, _ := service(t, r, nil)
	result := make(chan error, 1)
	go func() { result <- s.Mount(t.Context(), "c1", r.Reference("v1"), "/c1") }()
	<-asked
	s.Close()
	if err := <-result; err == nil {
		t.Error("Mount succeeded after Close")
	}
	close(release)
	if layers, staging := stored(t, s); len(layers)+len(staging) != 0 {
		t.Errorf("layers %v, staging %v", layers, staging)
	}
}
