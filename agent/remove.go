// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// RemoveContainer kills what runs of the container, removes it and drops its mounts. A timeout of 0 means a minute.
// Once begun, it does not end with ctx. After an error it may be called again; after success the id is unknown.
func (s *Sandbox) RemoveContainer(ctx context.Context, id string, timeout time.Duration) error {
	c, err := s.container(id)
	if err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	if timeout <= 0 {
		timeout = removeTimeout
	}
	if err := s.remove(ctx, c, timeout); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}

// remove removes a container, or waits for the removal that is under way.
func (s *Sandbox) remove(ctx context.Context, c *container, timeout time.Duration) error {
	c.mu.Lock()
	if r := c.removal; r != nil {
		c.mu.Unlock()
		select {
		case <-r.done:
			return r.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r := &removal{done: make(chan struct{})}
	c.removal, c.doomed = r, true
	c.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	r.err = s.tearDown(ctx, c)
	if r.err != nil {
		c.mu.Lock()
		c.removal = nil // for another attempt
		c.mu.Unlock()
	} else {
		s.mu.Lock()
		if s.containers[c.id] == c {
			delete(s.containers, c.id)
		}
		s.mu.Unlock()
		c.log.Info("container removed")
	}
	close(r.done)
	return r.err
}

// tearDown does the work of remove. Each step can be repeated.
func (s *Sandbox) tearDown(ctx context.Context, c *container) error {
	c.cancel() // no-op after the creation
	if err := await(ctx, c.created); err != nil {
		return fmt.Errorf("end its creation: %w", err)
	}
	c.mu.Lock()
	gone := c.state == containerCreating // it failed and took everything back
	c.mu.Unlock()
	if gone {
		return nil
	}
	if err := s.killAll(c); err != nil {
		return err
	}
	busy := make(chan struct{})
	go func() {
		c.busy.Wait()
		close(busy)
	}()
	if err := await(ctx, busy); err != nil {
		return fmt.Errorf("wait for a start or exec: %w", err)
	}
	if err := s.killAll(c); err != nil { // what a start or exec has started meanwhile
		return err
	}
	if c.execFailed.Load() { // looking for them costs time for each process of the machine
		s.clearLeftovers(c)
	}
	for _, p := range c.processes() {
		if err := p.remove(ctx); err != nil {
			return err
		}
	}
	if s.cfg.OOM != nil { // while the group is there, or its last events are lost
		s.cfg.OOM.Remove(c.cgroup)
	}
	if err := s.cfg.Runtime.Delete(ctx, c.id); err != nil {
		return err
	}
	if s.cfg.Cgroups != nil {
		if err := s.cfg.Cgroups.Remove(ctx, c.cgroup); err != nil {
			return err
		}
	}
	if err := c.undo.repeat(ctx); err != nil {
		return err
	}
	if err := s.cfg.Images.Unmount(ctx, c.id); err != nil {
		return fmt.Errorf("unmount root file system: %w", err)
	}
	if err := errors.Join(removeFile(c.configPath()), removeFile(c.rootfs)); err != nil {
		return err
	}
	if err := removeFile(c.bundle); err != nil {
		return err
	}
	c.close()
	return nil
}

func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
