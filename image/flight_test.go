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

// startRun begins a run that ends when it is told to, or with its context, and returns once it runs.
func startRun(t *testing.T, f *flights[string], id string, release chan struct{}) (leave func() error, ended *atomic.Value) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	ended = new(atomic.Value)
	go func() {
		_, err := f.do(ctx, id, func(ctx context.Context) (string, error) {
			select {
			case <-release:
				return "done " + id, nil
			case <-ctx.Done():
				ended.Store(context.Cause(ctx))
				return "", context.Cause(ctx)
			}
		})
		result <- err
	}()
	synctest.Wait()
	return func() error { cancel(); return <-result }, ended
}

func TestFlightLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := flights[string]{linger: time.Minute, most: 2}
		release := make(chan struct{})
		leave, ended := startRun(t, &f, "a", release)
		if err := leave(); !errors.Is(err, context.Canceled) {
			t.Errorf("the caller that went away got %v", err)
		}
		time.Sleep(59 * time.Second)
		joined := make(chan string, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		go func() {
			v, err := f.do(ctx, "a", func(context.Context) (string, error) { return "a new run", nil })
			if err != nil {
				t.Error(err)
			}
			joined <- v
		}()
		time.Sleep(time.Minute) // with a caller it does not end
		if ended.Load() != nil {
			t.Fatalf("the run ended: %v", ended.Load())
		}
		close(release)
		if v := <-joined; v != "done a" {
			t.Errorf("the second caller got %q", v)
		}

		leave, ended = startRun(t, &f, "b", nil)
		_ = leave()
		time.Sleep(61 * time.Second)
		if err, _ := ended.Load().(error); !errors.Is(err, errAbandoned) {
			t.Errorf("after a minute alone: %v", err)
		}
		if v, err := f.do(t.Context(), "b", func(context.Context) (string, error) { return "anew", nil }); v != "anew" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
		f.close()
	})
}

func TestAbandonedFlightsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := flights[string]{linger: time.Hour, most: 2}
		var ends []*atomic.Value
		for _, id := range []string{"a", "b", "c"} {
			leave, ended := startRun(t, &f, id, nil)
			_ = leave()
			ends = append(ends, ended)
		}
		synctest.Wait()
		if err, _ := ends[0].Load().(error); !errors.Is(err, errCrowded) || ends[1].Load() != nil || ends[2].Load() != nil {
			t.Errorf("ended: %v, %v, %v; want the first alone", ends[0].Load(), ends[1].Load(), ends[2].Load())
		}
		f.close()
		for _, e := range ends[1:] {
			if err, _ := e.Load().(error); !errors.Is(err, errClosed) {
				t.Errorf("after close: %v", err)
			}
		}
		if _, err := f.do(t.Context(), "d", func(context.Context) (string, error) { return "", nil }); !errors.Is(err, errClosed) {
			t.Errorf("a run after close: %v", err)
		}
		if len(f.abandoned)+len(f.byID) != 0 {
			t.Errorf("left: %d abandoned, %d in all", len(f.abandoned), len(f.byID))
		}
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
	go func() { gone <- mount(first, s, "c1", r.Reference("v1"), "/c1") }()
	<-asked
	var wg sync.WaitGroup
	for _, id := range []string{"c2", "c3"} {
		wg.Go(func() {
			if err := mount(t.Context(), s, id, r.Reference("v1"), "/"+id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		})
	}
	for !waiting(s, 3) {
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
	go func() { result <- mount(t.Context(), s, "c1", r.Reference("v1"), "/c1") }()
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
