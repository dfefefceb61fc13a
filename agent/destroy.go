// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"maps"
	"path"
	"slices"
	"sync"
)

// Done is closed when the sandbox has been destroyed.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Destroy kills and removes every container and takes back what Create did; calls that block on the sandbox return,
// and Done is closed, also after an error. A further call waits for the first and returns the same. Once begun, it
// does not end with ctx.
func (s *Sandbox) Destroy(ctx context.Context) error {
	s.mu.Lock()
	if s.state == sandboxDestroyed {
		s.mu.Unlock()
		select {
		case <-s.done:
			return s.destroyErr
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	creating, settled := s.state == sandboxCreating, s.settled
	if creating {
		s.mu.Unlock()
		<-settled
		return s.Destroy(ctx)
	}
	s.state = sandboxDestroyed
	containers := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		containers = append(containers, c)
	}
	s.mu.Unlock()
	s.oom.close()

	errs := s.removeAll(context.WithoutCancel(ctx), containers)
	s.mu.Lock()
	u, pid := s.teardown, s.pid
	s.mu.Unlock()
	if s.cfg.Volumes != nil {
		errs = append(errs, s.cfg.Volumes.Close(context.WithoutCancel(ctx)))
	}
	s.removeParents()
	if pid != nil {
		errs = append(errs, pid.Close())
	}
	s.destroyErr = errors.Join(append(errs, u.run(ctx))...)
	close(s.done)
	s.cfg.Log.Info("sandbox destroyed", "error", s.destroyErr)
	return s.destroyErr
}

// removeAll removes containers, at the same time. A removal that is under way already may take as long as the host likes,
// so that its end is not awaited longer than that of one that begins here.
func (s *Sandbox) removeAll(ctx context.Context, containers []*container) []error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	errs := make([]error, len(containers))
	var wg sync.WaitGroup
	for i, c := range containers {
		wg.Go(func() {
			errs[i] = s.remove(ctx, c, removeTimeout)
			c.close()
		})
	}
	wg.Wait()
	return errs
}

// removeParents removes the groups in which containers' lay, as far as they are empty: others may use them.
func (s *Sandbox) removeParents() {
	if s.cfg.Cgroups == nil {
		return
	}
	s.mu.Lock()
	parents := slices.Sorted(maps.Keys(s.cgroups))
	s.mu.Unlock()
	for _, p := range slices.Backward(parents) {
		for ; p != "/" && p != "."; p = path.Dir(p) {
			if err := s.cfg.Cgroups.RemoveEmpty(p); err != nil {
				s.cfg.Log.Debug("a group is left", "cgroup", p, "error", err)
				break
			}
		}
	}
}
