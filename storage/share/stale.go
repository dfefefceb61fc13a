// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package share

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/storage/mount"
)

// staleTimeout bounds how long one Remove waits for file systems that do not answer.
const staleTimeout = 5 * time.Second

// Mounts is what Stale needs of the kernel.
type Mounts struct {
	// Info opens what proc_pid_mountinfo(5) describes.
	Info func() (io.ReadCloser, error)
	// Stat is stat(2) of a mount point. It may hang.
	Stat func(target string) error
	// Detach unmounts lazily, and does not follow a link.
	Detach func(target string) error
}

// KernelMounts returns the mounts of this process's namespace.
func KernelMounts() Mounts {
	return Mounts{
		Info: func() (io.ReadCloser, error) { return os.Open("/proc/self/mountinfo") },
		Stat: func(target string) error {
			var st unix.Stat_t
			return os.NewSyscallError("stat", unix.Stat(target, &st))
		},
		Detach: mount.Detach,
	}
}

// Stale finds mounts below a shared folder whose file system has gone away. Its methods may be called concurrently.
type Stale struct {
	root   string
	mounts Mounts

	mu      sync.Mutex
	pending map[string]bool // mount points that a stat has not returned from
}

// NewStale returns a Stale for the mounts below the folder root.
func NewStale(root string, mounts Mounts) *Stale {
	return &Stale{root: root, mounts: mounts, pending: map[string]bool{}}
}

// Remove looks at every mount point below the folder, which alone makes a virtio-fs server drop what it cached of a
// folder that the host has removed (that is all that Kata's agent does), and detaches those whose server is gone: it
// returns their mount points. It waits at most 5 s, or until ctx ends, for file systems that do not answer; they are
// part of the error, and are left alone until they have answered, so that repeated calls do not pile up threads.
func (s *Stale) Remove(ctx context.Context) ([]string, error) {
	targets, err := s.targets()
	if err != nil {
		return nil, fmt.Errorf("find stale mounts: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, staleTimeout)
	defer cancel()
	var removed []string
	var errs []error
	answers := make([]<-chan error, len(targets))
	for i, target := range targets {
		answers[i] = s.stat(target)
	}
	for i, target := range targets {
		if answers[i] == nil {
			errs = append(errs, fmt.Errorf("stat %s: still waiting since an earlier call", target))
			continue
		}
		err, answered := await(ctx, answers[i])
		switch {
		case !answered:
			errs = append(errs, fmt.Errorf("stat %s: %w", target, ctx.Err()))
		case gone(err):
			if err := s.mounts.Detach(target); err != nil {
				errs = append(errs, err)
				continue
			}
			removed = append(removed, target)
		}
	}
	return removed, errors.Join(errs...)
}

// await returns a stat's outcome, and whether there is one. One that is there counts even if ctx has ended.
func await(ctx context.Context, answer <-chan error) (outcome error, answered bool) {
	select {
	case err := <-answer:
		return err, true
	case <-ctx.Done():
	}
	select {
	case err := <-answer:
		return err, true
	default:
		return nil, false
	}
}

// targets lists the mount points below the folder, the innermost first.
func (s *Stale) targets() ([]string, error) {
	info, err := s.mounts.Info()
	if err != nil {
		return nil, err
	}
	defer info.Close()
	infos, err := mountinfo.GetMountsFromReader(info, func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, s.root+"/"), false
	})
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, m := range infos {
		targets = append(targets, m.Mountpoint)
	}
	slices.Sort(targets)
	targets = slices.Compact(targets) // mounts over mounts
	slices.Reverse(targets)
	return targets, nil
}

// stat begins a stat and returns where its outcome will be; nil if an earlier one hangs.
func (s *Stale) stat(target string) <-chan error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[target] {
		return nil
	}
	s.pending[target] = true
	answer := make(chan error, 1)
	go func() {
		err := s.mounts.Stat(target)
		s.mu.Lock()
		delete(s.pending, target)
		s.mu.Unlock()
		answer <- err
	}()
	return answer
}

// gone tells whether an error means that a file system's server is no more.
func gone(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENODEV)
}
