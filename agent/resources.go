// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/agent/oci"
)

// UpdateContainer changes the limits of a created or running container; nil changes nothing. Which devices it may use
// does not change. A limit whose controller the guest lacks is left out with a line in the log.
func (s *Sandbox) UpdateContainer(ctx context.Context, id string, resources *specs.LinuxResources) error {
	if err := s.working(); err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	c, err := s.container(id)
	if err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	if resources == nil {
		return nil
	}
	s.mu.Lock()
	options := s.ociOptions(c)
	s.mu.Unlock()
	checked, notes, err := oci.Resources(resources, options)
	if err != nil {
		return fmt.Errorf("update container %s: %w: %w", id, ErrInvalidArgument, err)
	}
	c.logNotes(notes)
	if err := c.beginWork(); err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	defer c.busy.Done()
	if err := s.cfg.Runtime.Update(ctx, id, checked); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

// StatsContainer tells what a container uses. What the guest cannot tell is nil.
func (s *Sandbox) StatsContainer(_ context.Context, id string) (*cgroup.Stats, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, fmt.Errorf("container statistics: %w", err)
	}
	if s.cfg.Cgroups == nil {
		return &cgroup.Stats{}, nil
	}
	stats, err := s.cfg.Cgroups.Stats(c.cgroup)
	if err != nil {
		return nil, fmt.Errorf("statistics of container %s: %w", id, err)
	}
	return stats, nil
}

// logNotes logs what was left out of a request for the container.
func (c *container) logNotes(notes []string) {
	for _, note := range notes {
		c.log.Warn("left out of the container's spec", "what", note)
	}
}
