// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent/proc"
)

// drainTime is how long a stream may go on after its process has exited; see stream.
const drainTime = 500 * time.Millisecond

// process is a container's init process, or a further one. It is complete before others can find it.
type process struct {
	child          *proc.Process
	stdout, stderr *stream
	// waited is guarded by the container's lock.
	waited bool
	// gone is closed when the container has been removed.
	gone     chan struct{}
	goneOnce sync.Once
}

// startFunc has the runtime start a process and returns its pid.
type startFunc func(stdio Stdio) (pid int, err error)

// startProcess makes the streams of a process, starts it and adopts it.
func startProcess(reaper *proc.Reaper, start startFunc) (*process, error) {
	p := &process{gone: make(chan struct{})}
	var files [3]*os.File
	defer func() {
		for _, f := range files {
			if f != nil {
				_ = f.Close() // the runtime has passed on what it got
			}
		}
	}()
	var err error
	if files[0], err = os.Open(os.DevNull); err != nil {
		return nil, fmt.Errorf("open standard input: %w", err)
	}
	if p.stdout, files[1], err = newStream(); err != nil {
		return nil, err
	}
	if p.stderr, files[2], err = newStream(); err != nil {
		p.stdout.close()
		return nil, err
	}
	release := reaper.Hold()
	defer release()
	pid, err := start(Stdio{Stdin: files[0], Stdout: files[1], Stderr: files[2]})
	if err == nil {
		p.child, err = reaper.Adopt(pid)
	}
	if err != nil {
		p.closeStreams()
		return nil, err
	}
	go p.watch()
	return p, nil
}

// watch cuts the streams off some time after the exit.
func (p *process) watch() {
	select {
	case <-p.child.Done():
	case <-p.gone:
		return
	}
	drain := time.NewTimer(drainTime)
	defer drain.Stop()
	select {
	case <-drain.C:
		p.stdout.cutOff()
		p.stderr.cutOff()
	case <-p.gone:
	}
}

func (p *process) exited() bool {
	select {
	case <-p.child.Done():
		return true
	default:
		return false
	}
}

// signal sends a signal; a process that has exited is no error.
func (p *process) signal(sig unix.Signal) error {
	if err := p.child.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// wait returns the status as soon as the process has exited.
func (p *process) wait(ctx context.Context) (int, error) {
	select {
	case <-p.child.Done():
	case <-p.gone:
	case <-ctx.Done():
	}
	switch {
	case p.exited():
		return p.child.Status()
	case ctx.Err() != nil:
		return 0, ctx.Err()
	default:
		return 0, fmt.Errorf("the container was removed: %w", ErrState)
	}
}

// remove kills the process if it still runs, and waits for its exit.
func (p *process) remove(ctx context.Context) error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	select {
	case <-p.child.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for process %d to die: %w", p.child.PID(), ctx.Err())
	}
}

// close ends everything that waits for the process. It may be called more than once.
func (p *process) close() {
	p.goneOnce.Do(func() { close(p.gone) })
	p.closeStreams()
}

func (p *process) closeStreams() {
	p.stdout.close()
	p.stderr.close()
}
