// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"errors"
	"io"
	"os/exec"
	"time"

	runc "github.com/containerd/go-runc"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/proc"
)

// monitor has go-runc start its commands through agent/proc.
type monitor struct{ reaper *proc.Reaper }

// Start implements runc.ProcessMonitor.
func (m monitor) Start(cmd *exec.Cmd) (chan runc.Exit, error) {
	c, err := m.reaper.Start(cmd)
	if err != nil {
		return nil, err
	}
	exit := make(chan runc.Exit, 1)
	go func() {
		status, err := c.Wait()
		if err != nil && status == 0 {
			status = -1 // go-runc has no room for the error
		}
		exit <- runc.Exit{Timestamp: time.Now(), Pid: c.PID(), Status: status}
		close(exit)
	}()
	return exit, nil
}

// StartLocked implements runc.ProcessMonitor. go-runc calls it for commands that die with their parent thread, of
// which there are none here.
func (m monitor) StartLocked(*exec.Cmd) (chan runc.Exit, error) {
	return nil, errors.New("start runtime: a parent death signal is not offered")
}

// Wait implements runc.ProcessMonitor.
func (m monitor) Wait(_ *exec.Cmd, exit chan runc.Exit) (int, error) {
	return (<-exit).Status, nil
}

// files hands a container's streams to the runtime as they are; it implements runc.IO.
type files struct{ agent.Stdio }

// Set implements runc.IO.
func (f files) Set(cmd *exec.Cmd) {
	// Not assigned directly: a nil *os.File in an interface is not nil.
	if f.Stdio.Stdin != nil {
		cmd.Stdin = f.Stdio.Stdin
	}
	if f.Stdio.Stdout != nil {
		cmd.Stdout = f.Stdio.Stdout
	}
	if f.Stdio.Stderr != nil {
		cmd.Stderr = f.Stdio.Stderr
	}
}

// Close implements runc.IO; the caller of the Runtime closes the files.
func (files) Close() error { return nil }

// Stdin implements runc.IO: nothing is left to be copied.
func (files) Stdin() io.WriteCloser { return nil }

// Stdout implements runc.IO.
func (files) Stdout() io.ReadCloser { return nil }

// Stderr implements runc.IO.
func (files) Stderr() io.ReadCloser { return nil }
