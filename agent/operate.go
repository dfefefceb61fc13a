// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent/oci"
)

// working returns an error if the sandbox takes no new work.
func (s *Sandbox) working() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusal()
}

// StartContainer lets a created container run; it works once.
func (s *Sandbox) StartContainer(ctx context.Context, id string) error {
	if err := s.working(); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	c, err := s.container(id)
	if err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	if err := ctx.Err(); err != nil { // nothing has happened yet, so that it can be started later
		return fmt.Errorf("start container: %w", err)
	}
	if err := c.begin(containerCreated, containerStarting); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	if err := s.cfg.Runtime.Start(context.WithoutCancel(ctx), id); err != nil {
		c.end(containerFailed)
		return fmt.Errorf("start container %s: %w", id, err)
	}
	c.end(containerRunning)
	c.log.Info("container started")
	return nil
}

// Exec starts a further process in a running container. What p leaves out it has from the init process, see
// oci.ExecProcess.
func (s *Sandbox) Exec(ctx context.Context, containerID, execID string, p *specs.Process) error {
	if err := s.working(); err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	if !idPattern.MatchString(execID) {
		return fmt.Errorf("exec: %w: exec id %.140q", ErrInvalidArgument, execID)
	}
	c, err := s.container(containerID)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	if err := c.begin(containerRunning, containerRunning); err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	defer c.end(containerRunning)
	p, err = oci.ExecProcess(p, c.spec)
	if err != nil {
		return fmt.Errorf("exec in container %s: %w: %w", c.id, ErrInvalidArgument, err)
	}
	if err := resolveUser(c.rootfs, &p.User); err != nil {
		return fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	if err := s.openSecrets(ctx, p); err != nil {
		return fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	if err := c.reserveExec(execID); err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	started, err := s.exec(c, s.launch(p, func(stdio Stdio) (Started, error) {
		return s.cfg.Runtime.Exec(ctx, c.id, p, stdio)
	}).process)
	c.mu.Lock()
	if err != nil {
		delete(c.execs, execID)
	} else {
		c.execs[execID] = started
	}
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	c.log.Info("process started", "exec", execID, "pid", started.child.PID())
	return nil
}

// launch says how p is started by start.
func (s *Sandbox) launch(p *specs.Process, start func(Stdio) (Started, error)) launch {
	return launch{reaper: s.cfg.Reaper, terminal: p.Terminal, pipeSize: s.cfg.PipeSize, start: start}
}

// reserveExec takes an exec id.
func (c *container) reserveExec(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init.exited() {
		return fmt.Errorf("container %s has exited: %w", c.id, ErrState)
	}
	if _, taken := c.execs[id]; taken || id == c.id {
		return fmt.Errorf("exec_id '%s' of container %s: %w", id, c.id, ErrAlreadyExists)
	}
	if len(c.execs)-len(c.finished) >= maxUnwaited {
		return fmt.Errorf("container %s has %d processes that nobody has waited for: %w", c.id, maxUnwaited, ErrState)
	}
	c.execs[id] = nil
	return nil
}

// Signal sends a signal to a process. Without exec id it is meant for the init process, but SIGKILL then for every
// process of the container. A SIGTERM for which the init process has no use (it neither catches, blocks nor ignores
// it) becomes SIGKILL, because the kernel would drop it. A process that has exited is no error.
func (s *Sandbox) Signal(_ context.Context, containerID, execID string, signal int) error {
	if signal < 0 || signal > 64 {
		return fmt.Errorf("signal: %w: there is no signal %d", ErrInvalidArgument, signal)
	}
	c, p, err := s.process(containerID, execID)
	if err != nil {
		return fmt.Errorf("signal: %w", err)
	}
	sig := unix.Signal(signal)
	if execID == "" && sig == unix.SIGKILL {
		return s.killAll(c)
	}
	if p == c.init && sig == unix.SIGTERM && !p.exited() {
		if handles, err := p.child.Handles(sig); err == nil && !handles {
			sig = unix.SIGKILL
		}
	}
	if err := p.signal(sig); err != nil {
		return fmt.Errorf("signal container %s: %w", c.id, err)
	}
	return nil
}

// killAll kills every process of a container at once, so that none can start another meanwhile, paused ones too.
// Without control groups, those of a PID namespace of its own die with its init process.
func (s *Sandbox) killAll(c *container) error {
	if s.cfg.Cgroups != nil {
		if err := s.cfg.Cgroups.Kill(c.cgroup); err != nil {
			return fmt.Errorf("kill container %s: %w", c.id, err)
		}
	}
	for _, p := range c.processes() {
		if err := p.signal(unix.SIGKILL); err != nil {
			return fmt.Errorf("kill container %s: %w", c.id, err)
		}
	}
	return nil
}

// Wait blocks until the process has exited, and returns its exit code, or 128 and the number of the signal that ended
// it. It may be called many times, also at the same time and after the exit, until the container is removed.
func (s *Sandbox) Wait(ctx context.Context, containerID, execID string) (int, error) {
	c, p, err := s.process(containerID, execID)
	if err != nil {
		return 0, fmt.Errorf("wait: %w", err)
	}
	status, err := p.wait(ctx)
	if err != nil {
		return 0, fmt.Errorf("wait for %.140q of container %s: %w", execID, c.id, err)
	}
	c.waited(execID, p)
	return status, nil
}

// waited notes that somebody knows the status of a further process, and forgets the oldest of those if there are
// too many.
func (c *container) waited(id string, p *process) {
	c.mu.Lock()
	var old *process
	if c.execs[id] == p && !p.waited {
		p.waited = true
		c.finished = append(c.finished, id)
	}
	if len(c.finished) > maxFinished {
		old = c.execs[c.finished[0]]
		delete(c.execs, c.finished[0])
		c.finished = c.finished[1:]
	}
	c.mu.Unlock()
	if old != nil {
		old.close()
	}
}

// Containers returns how many containers there are.
func (s *Sandbox) Containers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers)
}

// Processes returns how many processes of containers have been started and not been forgotten.
func (s *Sandbox) Processes() int {
	s.mu.Lock()
	containers := slices.Collect(maps.Values(s.containers))
	s.mu.Unlock()
	n := 0
	for _, c := range containers {
		n += len(c.processes())
	}
	return n
}
