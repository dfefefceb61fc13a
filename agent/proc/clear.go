// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package proc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Clear kills the children of this program that nobody has claimed and that match picks, and collects them at once, also
// those that have exited already: what a failed command left behind would otherwise wait for the sweeper, or never end.
// A zombie keeps the PID namespace that it was in from ending, and with it the exit of that namespace's first process.
//
// Clear does not care for Hold: match must not pick a process that is about to be adopted.
func (r *Reaper) Clear(match func(pid int) bool) error {
	children, err := findChildren(r.procDir, os.Getpid())
	if err != nil {
		return fmt.Errorf("look for leftover processes: %w", err)
	}
	var errs []error
	for _, c := range children {
		if r.claimed(c.pid) || !match(c.pid) {
			continue
		}
		p, err := r.Adopt(c.pid)
		if errors.Is(err, unix.ECHILD) {
			continue // somebody was faster
		}
		if err == nil {
			err = p.Signal(unix.SIGKILL)
		}
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
			continue
		}
		r.log.Debug("killed a leftover process", "pid", c.pid)
	}
	return errors.Join(errs...)
}

func (r *Reaper) claimed(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.adopted[pid] != nil || r.started[pid] > 0
}
