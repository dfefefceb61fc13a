// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agenttest

import (
	"context"
	"maps"
	"sync"

	"github.com/cloister-cc/cloister/agent/cgroup"
)

// Cgroups freezes and kills nothing and keeps account; it is OOM, too.
type Cgroups struct {
	// Hook is called before each operation with the path.
	Hook Hook

	mu     sync.Mutex
	frozen map[string]bool
	oom    map[string]func()
}

// Stats implements agent.Cgroups.
func (c *Cgroups) Stats(path string) (*cgroup.Stats, error) {
	return &cgroup.Stats{Pids: &cgroup.Pids{Current: 1}}, c.Hook.call("Stats", path)
}

// Freeze implements agent.Cgroups.
func (c *Cgroups) Freeze(_ context.Context, path string) error { return c.set("Freeze", path, true) }

// Thaw implements agent.Cgroups.
func (c *Cgroups) Thaw(_ context.Context, path string) error { return c.set("Thaw", path, false) }

func (c *Cgroups) set(operation, path string, frozen bool) error {
	if err := c.Hook.call(operation, path); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frozen == nil {
		c.frozen = make(map[string]bool)
	}
	c.frozen[path] = frozen
	return nil
}

// Frozen returns which groups were frozen (true) or thawed (false) last.
func (c *Cgroups) Frozen() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.frozen)
}

// Kill implements agent.Cgroups.
func (c *Cgroups) Kill(path string) error { return c.Hook.call("Kill", path) }

// Remove implements agent.Cgroups.
func (c *Cgroups) Remove(_ context.Context, path string) error { return c.Hook.call("Remove", path) }

// RemoveEmpty implements agent.Cgroups.
func (c *Cgroups) RemoveEmpty(path string) error { return c.Hook.call("RemoveEmpty", path) }

// OOM is the watch of the same groups.
func (c *Cgroups) OOM() *OOM { return &OOM{c} }

// OOM implements agent.OOM for Cgroups.
type OOM struct{ groups *Cgroups }

// Add implements agent.OOM.
func (o *OOM) Add(path string, report func()) error {
	c := o.groups
	if err := c.Hook.call("Add", path); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.oom == nil {
		c.oom = make(map[string]func())
	}
	c.oom[path] = report
	return nil
}

// Remove implements agent.OOM.
func (o *OOM) Remove(path string) {
	o.groups.mu.Lock()
	defer o.groups.mu.Unlock()
	delete(o.groups.oom, path)
}

// Report says that the kernel has killed a process of a group, and whether that is watched.
func (o *OOM) Report(path string) bool {
	o.groups.mu.Lock()
	report := o.groups.oom[path]
	o.groups.mu.Unlock()
	if report != nil {
		report()
	}
	return report != nil
}
