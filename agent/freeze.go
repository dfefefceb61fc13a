// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// freezeTimeout bounds how long a container may take to stand still. A process that the kernel cannot stop, because it
// waits for a disk or a file server, takes longer.
const freezeTimeout = 10 * time.Second

// PauseContainer freezes every process of a created or running container, and returns when they stand still.
func (s *Sandbox) PauseContainer(ctx context.Context, id string) error {
	c, release, err := s.forFreezer(ctx, id)
	if err != nil {
		return fmt.Errorf("pause container: %w", err)
	}
	defer release()
	if err := c.mayPause(); err != nil {
		return fmt.Errorf("pause container: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeTimeout)
	defer cancel()
	if err := s.cfg.Cgroups.Freeze(ctx, c.cgroup); err != nil {
		thaw, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeTimeout)
		defer cancel()
		return fmt.Errorf("pause container %s: %w", c.id, errors.Join(err, s.cfg.Cgroups.Thaw(thaw, c.cgroup)))
	}
	c.setPaused(true)
	c.log.Info("container paused")
	return nil
}

// ResumeContainer lets the processes of a paused container go on.
func (s *Sandbox) ResumeContainer(ctx context.Context, id string) error {
	c, release, err := s.forFreezer(ctx, id)
	if err != nil {
		return fmt.Errorf("resume container: %w", err)
	}
	defer release()
	if !c.isPaused() {
		return fmt.Errorf("resume container: container %s is not paused: %w", c.id, ErrState)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeTimeout)
	defer cancel()
	if err := s.cfg.Cgroups.Thaw(ctx, c.cgroup); err != nil {
		return fmt.Errorf("resume container %s: %w", c.id, err)
	}
	c.setPaused(false)
	c.log.Info("container resumed")
	return nil
}

// forFreezer finds a container and keeps others from freezing or thawing it until release.
func (s *Sandbox) forFreezer(ctx context.Context, id string) (c *container, release func(), err error) {
	if err := s.working(); err != nil {
		return nil, nil, err
	}
	if c, err = s.container(id); err != nil {
		return nil, nil, err
	}
	if s.cfg.Cgroups == nil {
		return nil, nil, fmt.Errorf("this machine has no control groups: %w", ErrUnsupported)
	}
	select {
	case c.freezer <- struct{}{}:
		return c, func() { <-c.freezer }, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

func (c *container) mayPause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.doomed:
		return fmt.Errorf("container %s is being removed: %w", c.id, ErrState)
	case c.paused:
		return fmt.Errorf("container %s is paused already: %w", c.id, ErrState)
	case c.state != containerCreated && c.state != containerRunning:
		return fmt.Errorf("container %s is %v: %w", c.id, c.state, ErrState)
	case c.init.exited():
		return fmt.Errorf("container %s has exited: %w", c.id, ErrState)
	}
	return nil
}

func (c *container) isPaused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paused
}

func (c *container) setPaused(paused bool) {
	c.mu.Lock()
	c.paused = paused
	c.mu.Unlock()
}
