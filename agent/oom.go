// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// oomEvents are containers of which the kernel has killed a process, in order, each at most once until it is taken, also
// when it has been removed meanwhile. The zero value is ready for use.
type oomEvents struct {
	mu      sync.Mutex
	pending []string
	wake    chan struct{} // closed at a change; nil if nobody waits
	closed  bool
}

func (o *oomEvents) report(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed && !slices.Contains(o.pending, id) {
		o.pending = append(o.pending, id)
		o.changed()
	}
}

// close ends every next.
func (o *oomEvents) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.changed()
}

func (o *oomEvents) changed() {
	if o.wake != nil {
		close(o.wake)
		o.wake = nil
	}
}

// take returns the oldest event, or a channel to wait on, or neither once closed.
func (o *oomEvents) take() (id string, wait <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return "", nil
	case len(o.pending) > 0:
		id = o.pending[0]
		o.pending = o.pending[1:]
		return id, nil
	case o.wake == nil:
		o.wake = make(chan struct{})
	}
	return "", o.wake
}

// NextOOM blocks until the kernel has killed a process of a container because that used too much memory, and returns
// the container's id. Several events of a container that nobody has taken count as one. The end of the sandbox is
// ErrState.
func (s *Sandbox) NextOOM(ctx context.Context) (containerID string, err error) {
	for {
		id, wait := s.oom.take()
		if id != "" {
			return id, nil
		}
		if wait == nil {
			return "", fmt.Errorf("wait for an out-of-memory event: the sandbox is destroyed: %w", ErrState)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// watchOOM has the kernel's kills in a container reported. A guest that cannot tell of them runs the container all the
// same.
func (s *Sandbox) watchOOM(u *undo, c *container) {
	if s.cfg.OOM == nil {
		return
	}
	if err := s.cfg.OOM.Add(c.cgroup, func() { s.oom.report(c.id) }); err != nil {
		c.log.Warn("out-of-memory events are not available", "error", err)
		return
	}
	u.add("watch for out-of-memory events", func(context.Context) error {
		s.cfg.OOM.Remove(c.cgroup)
		return nil
	})
}
