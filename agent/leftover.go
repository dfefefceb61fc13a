// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"fmt"
	"os"
	"strings"
)

// A runtime that fails, or is killed, may leave processes in the container that nobody waits for: one that it has forked
// and not finished, or one that runs without the agent knowing. They are children of the agent. Even as zombies they keep
// the container's PID namespace, and with it the init process, from ending.

// exec runs launch, which starts a further process, and ends what it leaves in the container if it fails.
//
// Another exec may have a process in the container too that is not adopted yet. So nothing is ended before the last exec
// under way is through, which does it for all; launches is held for reading meanwhile. Nobody waits to write it.
func (s *Sandbox) exec(c *container, launch func() (*process, error)) (*process, error) {
	c.launches.RLock()
	p, err := launch()
	if err != nil {
		c.leftovers.Store(true)
		c.execFailed.Store(true)
	}
	c.launches.RUnlock()
	if c.leftovers.Load() && c.launches.TryLock() {
		c.leftovers.Store(false)
		s.clearLeftovers(c)
		c.launches.Unlock()
	}
	return p, err
}

// clearLeftovers ends the processes in a container that nobody waits for. No exec may be under way.
func (s *Sandbox) clearLeftovers(c *container) {
	if err := s.cfg.Reaper.Clear(func(pid int) bool { return s.owns(c, pid) }); err != nil {
		c.log.Warn("processes that a failed runtime left are not ended", "error", err)
	}
}

// owns tells whether a child of the agent is a process of the container. Without control groups, this is known for those
// that have a PID namespace of their own.
func (s *Sandbox) owns(c *container, pid int) bool {
	if s.cfg.Cgroups != nil {
		return inCgroup(pid, c.cgroup)
	}
	c.mu.Lock()
	init := c.init
	c.mu.Unlock()
	if init == nil || c.sharesPID {
		return false
	}
	ns := pidNamespace(pid)
	return ns != "" && ns == pidNamespace(init.child.PID()) && ns != pidNamespace(os.Getpid())
}

// pidNamespace names the PID namespace of a process; empty if it is gone.
func pidNamespace(pid int) string {
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return ""
	}
	return name
}

// inCgroup tells whether a process, running or zombie, is in a control group or in one below it, see cgroups(7).
func inCgroup(pid int, group string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false // it is gone
	}
	for line := range strings.Lines(string(data)) {
		if own, ok := strings.CutPrefix(line, "0::"); ok {
			own = strings.TrimSuffix(strings.TrimSuffix(own, "\n"), " (deleted)")
			return own == group || strings.HasPrefix(own, group+"/")
		}
	}
	return false
}
