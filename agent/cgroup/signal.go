// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// pidfds bounds the descriptors that kill has open at a time.
	pidfds = 128
	// maxRounds bounds how often to look for processes that were forked while others were killed.
	maxRounds = 1000
)

// Kill sends SIGKILL to all processes of a group and of the groups below it, also to those that are being forked. It
// does not wait for their ends; Remove does. A group that is gone is no error.
func (h Hierarchy) Kill(path string) error {
	group, err := h.openForeign(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	defer func() { _ = group.Close() }()
	err = writeFile(group, "cgroup.kill", "1")
	if errors.Is(err, fs.ErrNotExist) { // the group is gone, or the kernel is older than 5.14
		err = killRounds(group)
	}
	if err != nil {
		return fmt.Errorf("kill processes of cgroup %s: %w", path, err)
	}
	return nil
}

// killRounds kills the processes that it finds until it finds no new ones two times. A process cannot fork any more
// once it has the signal, but the child of a fork under way may enter the group after the list was read.
func killRounds(group *os.Root) error {
	killed := map[int]bool{}
	for round, quiet := 0, 0; quiet < 2; round++ {
		if round == maxRounds {
			return errors.New("processes multiply faster than they can be killed")
		}
		pids, err := procs(group)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		quiet++
		for _, pid := range pids {
			if !killed[pid] {
				killed[pid], quiet = true, 0
			}
		}
		if err := kill(group, pids); err != nil {
			return err
		}
	}
	return nil
}

// kill sends SIGKILL to processes of a group. A process ID may pass to another process at any time, so it takes a handle
// (a pidfd where the kernel has them) to each process first, looks again which are in the group, and kills only those.
func kill(group *os.Root, pids []int) error {
	var errs []error
	for some := range slices.Chunk(pids, pidfds) {
		handles := make([]*os.Process, 0, len(some))
		for _, pid := range some {
			p, err := os.FindProcess(pid)
			if err != nil {
				errs = append(errs, fmt.Errorf("find process %d: %w", pid, err))
				continue
			}
			handles = append(handles, p)
		}
		now, err := procs(group)
		if err != nil {
			errs = append(errs, err)
		}
		for _, p := range handles {
			if _, in := slices.BinarySearch(now, p.Pid); in {
				err := p.Kill()
				if err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, unix.ESRCH) {
					errs = append(errs, fmt.Errorf("kill process %d: %w", p.Pid, err))
				}
			}
			if err := p.Release(); err != nil {
				errs = append(errs, fmt.Errorf("release process handle: %w", err))
			}
		}
		if err != nil {
			break
		}
	}
	return errors.Join(errs...)
}
