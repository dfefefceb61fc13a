// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"fmt"

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
	if err := c.begin(containerCreated, containerStarting); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	if err := s.cfg.Runtime.Start(ctx, id); err != nil {
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
	if p != nil && p.Terminal {
		return fmt.Errorf("exec with a terminal: %w", ErrUnsupported)
	}
	if err := c.begin(containerRunning, containerRunning); err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	defer c.end(containerRunning)
	p, err = oci.ExecProcess(p, c.spec)
	if err != nil {
		return fmt.Errorf("exec in container %s: %w: %w", c.id, ErrInvalidArgument, err)
	}
	if err := s.openSecrets(ctx, p); err != nil {
		return fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	if err := c.reserveExec(execID); err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	started, err := startProcess(s.cfg.Reaper, func(stdio Stdio) (int, error) {
		return s.cfg.Runtime.Exec(ctx, c.id, execID, p, stdio)
	})
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

// reserveExec takes an exec id.
func (c *container) reserveExec(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init.exited() {
		return fmt.Errorf("container %s has exited: %w", c.id, ErrState)
	}
	if _, taken := c.execs[id]; taken || id == c.id {
		return fmt.Errorf("exec id %s of container %s: %w", id, c.id, ErrAlreadyExists)
	}
	c.execs[id] = nil
	return nil
}

// Signal sends a signal to a process. Without exec id it is meant for the init process, but SIGKILL then for every
// process of the container. A SIGTERM for which the init process has no use (it neither catches, blocks nor ignores
// it) becomes SIGKILL, because the kernel would drop it. A process that has exited is no error.
func (s *Sandbox) Signal(ctx context.Context, containerID, execID string, signal int) error {
	if signal < 0 || signal > 64 {
		return fmt.Errorf("signal: %w: there is no signal %d", ErrInvalidArgument, signal)
	}
	c, p, err := s.process(containerID, execID)
	if err != nil {
		return fmt.Errorf("signal: %w", err)
	}
	sig := unix.Signal(signal)
	if execID == "" && sig == unix.SIGKILL {
		return s.killAll(ctx, c, p)
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

// killAll kills every process of a container. Those of a PID namespace of its own die with its init process.
func (s *Sandbox) killAll(ctx context.Context, c *container, init *process) error {
	if init.exited() && !c.sharesPID {
		return nil
	}
	err := s.cfg.Runtime.Kill(ctx, c.id, int(unix.SIGKILL), true)
	if err != nil && !init.exited() {
		return fmt.Errorf("kill container %s: %w", c.id, err)
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

// ReadStdout reads up to max bytes of the process's standard output, waiting for the first. No bytes and no error
// mean its end, which comes at the latest half a second after the exit of the process and once what it left in the
// pipe has been read.
func (s *Sandbox) ReadStdout(ctx context.Context, containerID, execID string, max int) ([]byte, error) {
	return s.readStream(ctx, containerID, execID, max, func(p *process) *stream { return p.stdout })
}

// ReadStderr is ReadStdout for standard error.
func (s *Sandbox) ReadStderr(ctx context.Context, containerID, execID string, max int) ([]byte, error) {
	return s.readStream(ctx, containerID, execID, max, func(p *process) *stream { return p.stderr })
}

func (s *Sandbox) readStream(ctx context.Context, containerID, execID string, limit int, which func(*process) *stream) ([]byte, error) {
	if limit <= 0 {
		return nil, fmt.Errorf("read stream: %w: a length of %d", ErrInvalidArgument, limit)
	}
	c, p, err := s.process(containerID, execID)
	if err != nil {
		return nil, fmt.Errorf("read stream: %w", err)
	}
	data, err := which(p).read(ctx, limit)
	if err != nil {
		return nil, fmt.Errorf("read stream of container %s: %w", c.id, err)
	}
	return data, nil
}
