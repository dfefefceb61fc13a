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
	stdin          *input
	stdout, stderr *stream
	// console is the master of the process's terminal, which stdout owns; nil without a terminal.
	console *os.File
	// waited is guarded by the container's lock.
	waited bool
	// gone is closed when the container has been removed.
	gone     chan struct{}
	goneOnce sync.Once
}

// launch says how a process is started.
type launch struct {
	reaper *proc.Reaper
	// terminal gives the process a terminal in place of pipes of pipeSize bytes (0: the kernel's default).
	terminal bool
	pipeSize int
	// start has the runtime start the process.
	start func(stdio Stdio) (Started, error)
}

// process makes the streams of a process, starts it and adopts it.
func (l launch) process() (*process, error) {
	p := &process{gone: make(chan struct{})}
	var stdio Stdio
	var files []*os.File // the container's ends of pipes
	if l.terminal {
		stdio.Terminal = true
	} else {
		var err error
		if files, err = p.makePipes(l.pipeSize); err != nil {
			return nil, err
		}
		stdio = Stdio{Stdin: files[0], Stdout: files[1], Stderr: files[2]}
	}
	defer closeAll(files) // the runtime has passed on what it got
	release := l.reaper.Hold()
	defer release()
	started, err := l.start(stdio)
	if err == nil && l.terminal && started.Console == nil {
		err = errors.New("the runtime has not handed over the terminal")
	}
	if err == nil { // last: what is adopted is nobody's leftover, and so not ended with those
		p.child, err = l.reaper.Adopt(started.PID)
	}
	if err != nil {
		if started.Console != nil {
			err = errors.Join(err, started.Console.Close())
		}
		p.closeStreams()
		return nil, err
	}
	if l.terminal {
		p.console = started.Console
		p.stdin = newTerminalInput(p.console)
		p.stdout = newTerminalStream(p.console, p.child.Done())
		p.stderr = endedStream() // the terminal's output is one stream
	}
	go p.watch()
	return p, nil
}

// makePipes makes the streams of a process without terminal, and returns the ends for it: input, output, errors.
func (p *process) makePipes(size int) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			p.closeStreams()
			files = nil
		}
	}()
	var file *os.File
	if p.stdin, file, err = newInput(size); err != nil {
		return nil, err
	}
	files = append(files, file)
	if p.stdout, file, err = newStream(size); err != nil {
		return files, err
	}
	files = append(files, file)
	if p.stderr, file, err = newStream(size); err != nil {
		return files, err
	}
	return append(files, file), nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written through it
	}
}

// resize sets the size of the process's terminal, in characters.
func (p *process) resize(rows, columns uint16) error {
	if p.console == nil {
		return ErrNoTerminal
	}
	var err error
	control(p.console, func(fd int) {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	return err
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
		p.stdin.close()
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
	if p.stdin != nil {
		p.stdin.close()
	}
	for _, s := range []*stream{p.stdout, p.stderr} {
		if s != nil {
			s.close()
		}
	}
}
