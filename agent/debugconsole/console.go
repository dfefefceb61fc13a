// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package debugconsole gives whoever connects a shell in the guest, as root: Kata's agent.debug_console.
//
// It is the opposite of what this agent is for, since the one who connects is the host. Nothing here asks whether that
// is wanted: a caller starts it only if the sealed configuration says so. Nothing that runs in a session survives it,
// unless it makes a session of its own.
package debugconsole

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent/proc"
)

const (
	// maxSessions bounds the connections that have a shell at a time.
	maxSessions = 4
	// drainGrace is how long the last output of a shell that has exited may take to be read.
	drainGrace = time.Second
	// acceptPause is how long Serve waits after an error of Accept such as a lack of descriptors.
	acceptPause = 100 * time.Millisecond
)

// DefaultShells are the shells that Kata's agent looks for.
func DefaultShells() []string { return []string{"/bin/bash", "/bin/sh"} }

// Console starts shells.
type Console struct {
	reaper *proc.Reaper
	shell  string
	log    *slog.Logger
}

// New returns a Console whose shells are started by reaper. The shell is the first of shells, absolute paths, that can
// be executed; it is an error if there is none. A nil log discards.
func New(reaper *proc.Reaper, shells []string, log *slog.Logger) (*Console, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for _, shell := range shells {
		if info, err := os.Stat(shell); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return &Console{reaper: reaper, shell: shell, log: log}, nil
		}
	}
	return nil, fmt.Errorf("find shell for debug console: none of %q can be executed", shells)
}

// Serve gives each connection to l a shell on a terminal of its own, of 80x24 characters; a fifth one at a time is
// closed at once. The shell's exit closes the connection, and the end of the connection, also of its sending side alone,
// kills all processes of the shell's session. Serve goes on until ctx ends or l fails, ends all sessions, closes l and
// then returns, with nil if ctx has ended.
func (c *Console) Serve(ctx context.Context, l net.Listener) error {
	var sessions sync.WaitGroup
	defer sessions.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()

	free := make(chan struct{}, maxSessions)
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close() // too late
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept debug console: %w", err)
		case err != nil:
			c.log.Warn("cannot accept debug console", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case free <- struct{}{}:
		default:
			c.log.Warn("too many debug consoles", "limit", maxSessions)
			_ = conn.Close() // nothing was written
			continue
		}
		sessions.Go(func() {
			defer func() { <-free }()
			if err := c.session(ctx, conn); err != nil {
				c.log.Error("debug console failed", "error", err)
			}
		})
	}
}

// session runs a shell for conn and closes it.
func (c *Console) session(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	master, slave, err := openPty()
	if err != nil {
		return err
	}
	defer master.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shell, err := c.start(ctx, slave)
	_ = slave.Close() // the shell has it
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		_ = conn.Close() // wakes both copies
		_ = master.Close()
	})()

	var copies sync.WaitGroup
	copies.Go(func() {
		defer cancel()
		_, _ = io.Copy(master, conn) // every end of it means that the client has gone or the shell has exited
	})
	drained := make(chan struct{})
	copies.Go(func() {
		defer close(drained)
		if _, err := io.Copy(conn, master); !errors.Is(err, unix.EIO) { // EIO: nobody has the terminal open any more
			cancel()
		}
	})
	err = c.wait(shell)
	select {
	case <-drained:
	case <-ctx.Done():
	case <-time.After(drainGrace):
	}
	cancel()
	copies.Wait()
	return err
}

// Run runs one shell on the terminal at ttyPath, for instance /dev/console, until it exits or ctx ends. It is an error
// if ttyPath is no terminal.
func (c *Console) Run(ctx context.Context, ttyPath string) error {
	tty, err := os.OpenFile(ttyPath, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open debug console: %w", err)
	}
	defer tty.Close()
	shell, err := c.start(ctx, tty)
	if err != nil {
		return err
	}
	return c.wait(shell)
}

// start starts a shell in a session of its own with tty as its controlling terminal. The end of ctx kills the session.
func (c *Console) start(ctx context.Context, tty *os.File) (*proc.Command, error) {
	cmd := exec.CommandContext(ctx, c.shell)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "TERM=linux"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	cmd.Cancel = func() error {
		endSession(cmd.Process.Pid)
		return nil
	}
	shell, err := c.reaper.Start(cmd)
	if err != nil {
		return nil, fmt.Errorf("start debug console: %w", err)
	}
	c.log.Warn("debug console opened", "pid", shell.PID(), "shell", c.shell)
	return shell, nil
}

// wait waits for a shell and ends what it left behind.
func (c *Console) wait(shell *proc.Command) error {
	status, err := shell.Wait()
	endSession(shell.PID())
	c.log.Warn("debug console closed", "pid", shell.PID(), "status", status)
	return err
}
