// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package share

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// mountTable has a file system in the shared folder for each answer, and some elsewhere.
const mountTable = `20 1 0:20 / / rw - tmpfs none rw
21 20 0:21 / /run/shared rw - virtiofs kataShared rw
22 21 0:22 / /run/shared/dead rw shared:7 - fuse none rw
23 22 0:23 / /run/shared/dead/inner rw - fuse none rw
24 21 0:24 / /run/shared/fine rw - tmpfs none rw
25 21 0:25 / /run/shared/new\012line rw - fuse none rw
26 21 0:26 / /run/shared/hangs rw - fuse none rw
27 21 0:27 / /run/shared/denied rw - fuse none rw
28 20 0:28 / /run/shared-not/dead rw - fuse none rw
29 24 0:29 / /run/shared/fine rw - tmpfs none rw
`

type fakeMounts struct {
	mu       sync.Mutex
	stats    []string
	detached []string
	release  chan struct{}
}

func (f *fakeMounts) mounts() Mounts {
	return Mounts{
		Info: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(mountTable)), nil },
		Stat: func(target string) error {
			f.mu.Lock()
			f.stats = append(f.stats, target)
			f.mu.Unlock()
			switch strings.TrimPrefix(target, "/run/shared/") {
			case "dead":
				return os.NewSyscallError("stat", unix.ENOTCONN)
			case "dead/inner", "new\nline":
				return os.NewSyscallError("stat", unix.ESTALE)
			case "denied":
				return os.NewSyscallError("stat", unix.EACCES)
			case "hangs":
				<-f.release
			}
			return nil
		},
		Detach: func(target string) error {
			f.detached = append(f.detached, target)
			if target == "/run/shared/new\nline" {
				return unix.EINVAL
			}
			return nil
		},
	}
}

func TestStale(t *testing.T) {
	fake := &fakeMounts{release: make(chan struct{})}
	s := NewStale("/run/shared", fake.mounts())
	for round := range 3 { // the hanging one is asked once
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		fake.detached = nil
		var removed []string
		var err error
		go func() {
			removed, err = s.Remove(ctx)
			close(done)
		}()
		if round == 0 {
			waitFor(t, func() bool {
				fake.mu.Lock()
				defer fake.mu.Unlock()
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(fake.stats) == 6 && len(s.pending) == 1
			})
			cancel()
		}
		<-done
		cancel()
		if diff := cmp.Diff([]string{"/run/shared/dead/inner", "/run/shared/dead"}, removed); diff != "" {
			t.Errorf("removed (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"/run/shared/new\nline", "/run/shared/dead/inner", "/run/shared/dead"}, fake.detached); diff != "" {
			t.Errorf("detached (-want +got):\n%s", diff)
		}
		if err == nil || !strings.Contains(err.Error(), "hangs") || !errors.Is(err, unix.EINVAL) || strings.Contains(err.Error(), "denied") {
			t.Errorf("error %v", err)
		}
		if round == 0 && !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	}
	if got := strings.Count(strings.Join(fake.stats, " "), "hangs"); got != 1 {
		t.Errorf("%d stats of a mount that hangs", got)
	}
	close(fake.release)
	waitFor(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.pending) == 0 })
	if _, err := s.Remove(t.Context()); err == nil || strings.Contains(err.Error(), "hangs") {
		t.Errorf("after the answer: %v", err)
	}
}

func TestStaleKernel(t *testing.T) {
	if removed, err := NewStale(t.TempDir(), KernelMounts()).Remove(t.Context()); err != nil || removed != nil {
		t.Errorf("removed %q, %v", removed, err)
	}
	if removed, err := NewStale("/proc", KernelMounts()).Remove(t.Context()); err != nil || removed != nil {
		t.Errorf("removed %q, %v", removed, err)
	}
	broken := KernelMounts()
	broken.Info = func() (io.ReadCloser, error) { return nil, unix.EMFILE }
	if _, err := NewStale("/x", broken).Remove(t.Context()); !errors.Is(err, unix.EMFILE) {
		t.Errorf("error %v", err)
	}
	broken.Info = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("nonsense\n")), nil }
	if _, err := NewStale("/x", broken).Remove(t.Context()); err == nil {
		t.Error("no error for a broken mount table")
	}
}

// waitFor waits until a condition that other goroutines bring about holds; the test's own deadline ends it.
func waitFor(t *testing.T, holds func() bool) {
	t.Helper()
	for !holds() {
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
		time.Sleep(time.Millisecond)
	}
}
