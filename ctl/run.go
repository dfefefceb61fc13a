// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"
)

// cleanupTimeout bounds what Run does to leave nothing behind once its context has ended.
const cleanupTimeout = 30 * time.Second

// RunOptions say what Run shall run.
type RunOptions struct {
	// Container is the container to run; an empty SandboxID is filled in.
	Container Container
	// Hostname and DNS (lines of resolv.conf) are the sandbox's.
	Hostname string
	DNS      []string
	// Link, unless nil, is configured first, with the default route to Gateway where that is valid.
	Link   *Link
	Routes []Route
	// Pause creates a pause container first, as Kubernetes does.
	Pause bool
	// Exec, unless it has no Args, is run in the container next to its own process; once it has exited, the container is
	// killed, and the status is that of Exec. Without an Env of its own, it has the container's, as in Kubernetes.
	Exec Process
	// KeepSandbox leaves the sandbox there; otherwise it is destroyed, and the guest powers off.
	KeepSandbox bool
	// Stdout and Stderr get what the container and Exec write; nil drops it.
	Stdout, Stderr io.Writer
	// Stdin and Terminal are as in Streams. They are for Exec if there is one, and for the container's process otherwise.
	Stdin    io.Reader
	Terminal *Terminal
}

// execID is the id of the process that RunOptions.Exec asks for.
const execID = "exec-1"

// Run walks the sequence of the shim: Check, UpdateInterface, UpdateRoutes, CreateSandbox, CreateContainer,
// StartContainer, ReadStdout and ReadStderr to their ends, WaitProcess, SignalProcess(9), RemoveContainer,
// DestroySandbox. It returns the exit status of the container. Where a step fails, and when ctx ends, it removes what
// it has made before it returns.
func (s *Session) Run(ctx context.Context, o RunOptions) (status int, err error) {
	o.fillIn()
	if _, err := o.Container.Request(); err != nil {
		return 0, err
	}
	if _, err := s.Check(ctx); err != nil {
		return 0, err
	}
	if err := s.setUpNetwork(ctx, o); err != nil {
		return 0, err
	}
	if err := s.CreateSandbox(ctx, o.Container.SandboxID, o.Hostname, o.DNS); err != nil {
		return 0, err
	}
	if !o.KeepSandbox {
		defer s.cleanUp(ctx, &err, s.DestroySandbox)
	}
	if o.Pause {
		pause := Container{ID: o.Container.SandboxID, Pause: true}
		if err := s.create(ctx, pause); err != nil {
			return 0, err
		}
		defer s.cleanUp(ctx, &err, func(ctx context.Context) error { return s.killAndRemove(ctx, pause.ID) })
	}
	return s.runContainer(ctx, o)
}

func (o *RunOptions) fillIn() {
	if o.Container.SandboxID == "" {
		o.Container.SandboxID = o.Container.ID
		if o.Pause {
			o.Container.SandboxID += "-sandbox"
		}
	}
	if o.Stdout == nil {
		o.Stdout = io.Discard
	}
	if o.Stderr == nil {
		o.Stderr = io.Discard
	}
}

func (s *Session) setUpNetwork(ctx context.Context, o RunOptions) error {
	if o.Link != nil {
		if _, err := s.UpdateInterface(ctx, *o.Link); err != nil {
			return err
		}
	}
	if len(o.Routes) > 0 {
		if _, err := s.UpdateRoutes(ctx, o.Routes); err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) runContainer(ctx context.Context, o RunOptions) (status int, err error) {
	id := o.Container.ID
	if err := s.create(ctx, o.Container); err != nil {
		return 0, err
	}
	defer s.cleanUp(ctx, &err, func(ctx context.Context) error { return s.killAndRemove(ctx, id) })
	if len(o.Exec.Args) == 0 {
		return s.attachAndWait(ctx, o, "")
	}
	done := make(chan error, 1)
	go func() { done <- s.Attach(ctx, id, "", o.Stdout, o.Stderr) }()
	status, err = s.runExec(ctx, o)
	if kill := s.Signal(context.WithoutCancel(ctx), id, "", uint32(syscall.SIGKILL)); kill != nil {
		return status, errors.Join(err, kill)
	}
	return status, errors.Join(err, <-done)
}

func (s *Session) runExec(ctx context.Context, o RunOptions) (int, error) {
	if len(o.Exec.Env) == 0 {
		o.Exec.Env = o.Container.Process.Env
	}
	if err := s.Exec(ctx, o.Container.ID, execID, o.Exec); err != nil {
		return 0, err
	}
	return s.attachAndWait(ctx, o, execID)
}

func (s *Session) attachAndWait(ctx context.Context, o RunOptions, execID string) (int, error) {
	streams := Streams{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Terminal: o.Terminal}
	if err := s.Interact(ctx, o.Container.ID, execID, streams); err != nil {
		return 0, err
	}
	return s.Wait(ctx, o.Container.ID, execID)
}

// create creates and starts a container; one that does not start is removed.
func (s *Session) create(ctx context.Context, c Container) error {
	if err := s.CreateContainer(ctx, c); err != nil {
		return err
	}
	err := s.StartContainer(ctx, c.ID)
	if err != nil {
		s.cleanUp(ctx, &err, func(ctx context.Context) error { return s.RemoveContainer(ctx, c.ID) })
	}
	return err
}

func (s *Session) killAndRemove(ctx context.Context, id string) error {
	return errors.Join(s.Signal(ctx, id, "", uint32(syscall.SIGKILL)), s.RemoveContainer(ctx, id))
}

// cleanUp runs f, which must run even when ctx has ended, and adds its error to *err.
func (s *Session) cleanUp(ctx context.Context, err *error, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if failure := f(ctx); failure != nil {
		*err = errors.Join(*err, fmt.Errorf("clean up: %w", failure))
	}
}
