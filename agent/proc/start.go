// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package proc

import (
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outputGrace is how long output is still copied after a command's exit, when os/exec copies it and the command set
// no WaitDelay of its own. A background process that holds the output open cannot keep Wait longer.
const outputGrace = 5 * time.Second

// Command is a helper command that Start has started.
type Command struct {
	done   chan struct{}
	pid    int
	status int
	err    error
}

// Start starts a helper command and waits for it in the background. The command's context, if it has one, kills it.
func (r *Reaper) Start(cmd *exec.Cmd) (*Command, error) {
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = outputGrace
	}
	release := r.Hold()
	defer release()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start command: %w", err)
	}
	c := &Command{done: make(chan struct{}), pid: cmd.Process.Pid}
	r.claim(c.pid)
	go func() {
		defer close(c.done)
		defer r.unclaim(c.pid)
		c.status, c.err = commandStatus(cmd, cmd.Wait())
	}()
	return c, nil
}

// commandStatus turns the result of cmd.Wait into a status; an exit code other than 0 is no error.
func commandStatus(cmd *exec.Cmd, err error) (int, error) {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		return -1, fmt.Errorf("wait for command: %w", err)
	}
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		return -1, errors.New("wait for command: the status is in no known form")
	}
	return status(unix.WaitStatus(ws)), nil
}

// PID returns the command's process id.
func (c *Command) PID() int { return c.pid }

// Wait blocks until the command has exited, and returns its exit code, or 128 and the number of the signal that
// ended it. It may be called more than once.
func (c *Command) Wait() (int, error) {
	<-c.done
	return c.status, c.err
}

// status is the exit code of a process, or 128 and the number of the signal that ended it, as shells have it.
func status(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
