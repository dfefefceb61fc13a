// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// chunkSize is how much the shim reads or writes of a stream at a time, in bytes.
const chunkSize = 32768

// Streams are the near ends of a process's standard streams.
type Streams struct {
	// Stdin is copied to the process, and its end ends the process's input; nil sends nothing and ends nothing. It is read
	// in a goroutine that outlives Interact until the Read or the request that is under way returns; what it reads is lost.
	Stdin io.Reader
	// Stdout and Stderr get what the process writes; nil drops it. A process with a terminal writes to Stdout alone.
	Stdout, Stderr io.Writer
	// Terminal, unless nil, is the user's terminal: it is in raw mode meanwhile, and the process's terminal gets its size.
	Terminal *Terminal
}

// Attach copies a process's standard output and standard error until both end.
func (s *Session) Attach(ctx context.Context, containerID, execID string, stdout, stderr io.Writer) error {
	return s.Interact(ctx, containerID, execID, Streams{Stdout: stdout, Stderr: stderr})
}

// Interact connects a process's standard streams until its output has ended. A process that reads no more of its input
// is no error.
func (s *Session) Interact(ctx context.Context, containerID, execID string, st Streams) error {
	return s.step("ReadStdout+ReadStderr("+nameOf(containerID, execID)+")", func() (err error) {
		if st.Terminal != nil {
			restore, err := st.Terminal.raw()
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, restore()) }()
		}
		return s.interact(ctx, containerID, execID, st)
	})
}

func (s *Session) interact(ctx context.Context, containerID, execID string, st Streams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2) // of what runs beside the output
	beside := func(f func() error) {
		if err := f(); err != nil && ctx.Err() == nil {
			failed <- err
			cancel()
		}
	}
	if st.Stdin != nil {
		go beside(func() error { return s.feed(ctx, containerID, execID, st.Stdin) })
	}
	if st.Terminal != nil {
		watched := make(chan struct{})
		defer func() { <-watched }()
		defer cancel()
		go func() {
			defer close(watched)
			beside(func() error {
				return st.Terminal.watch(ctx, func(size Size) error { return s.resize(ctx, containerID, execID, size) })
			})
		}()
	}
	g, readCtx := errgroup.WithContext(ctx)
	g.Go(func() error { return drain(readCtx, s.agent.ReadStdout, containerID, execID, st.Stdout) })
	g.Go(func() error { return drain(readCtx, s.agent.ReadStderr, containerID, execID, st.Stderr) })
	err := g.Wait()
	select {
	case cause := <-failed:
		return cause
	default:
		return err
	}
}

func drain(
	ctx context.Context, read func(context.Context, *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error),
	containerID, execID string, w io.Writer,
) error {
	if w == nil {
		w = io.Discard
	}
	for {
		r, err := read(ctx, &pb.ReadStreamRequest{ContainerId: containerID, ExecId: execID, Len: chunkSize})
		if err != nil {
			return err
		}
		if len(r.GetData()) == 0 {
			return nil
		}
		if _, err := w.Write(r.GetData()); err != nil {
			return fmt.Errorf("pass output on: %w", err)
		}
	}
}

// feed copies r to a process's standard input and ends that at the end of r. A request is not given up when ctx ends: it
// returns when the process has taken the data or has gone, or when the connection is closed.
func (s *Session) feed(ctx context.Context, containerID, execID string, r io.Reader) error {
	calls := context.WithoutCancel(ctx)
	buf := make([]byte, chunkSize)
	for {
		n, err := r.Read(buf)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // nobody wants it any more
		}
		if n > 0 {
			if err := s.write(calls, containerID, execID, buf[:n]); err != nil {
				return inputError(err)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return inputError(s.closeInput(calls, containerID, execID))
		case err != nil:
			return fmt.Errorf("read input for %s: %w", nameOf(containerID, execID), err)
		}
	}
}

// inputError is nil for what only says that the process reads no more, because it has closed its input or has exited:
// what became of it, its output and its status tell. The texts are those of the agent and of its kernel.
func inputError(err error) error {
	if err == nil || status.Code(err) == codes.NotFound {
		return nil
	}
	for _, text := range []string{"Cannot get writer", "broken pipe", "input/output error"} {
		if strings.Contains(err.Error(), text) {
			return nil
		}
	}
	return fmt.Errorf("WriteStdin: %w", err)
}

func (s *Session) write(ctx context.Context, containerID, execID string, data []byte) error {
	for len(data) > 0 {
		r, err := s.agent.WriteStdin(ctx, &pb.WriteStreamRequest{ContainerId: containerID, ExecId: execID, Data: data})
		if err != nil {
			return err
		}
		n := int(r.GetLen())
		if n == 0 || n > len(data) {
			return fmt.Errorf("the agent says that it took %d of %d bytes", n, len(data))
		}
		data = data[n:]
	}
	return nil
}

func (s *Session) closeInput(ctx context.Context, containerID, execID string) error {
	_, err := s.agent.CloseStdin(ctx, &pb.CloseStdinRequest{ContainerId: containerID, ExecId: execID})
	return err
}

// resize is TtyWinResize for a terminal that may have gone with its process.
func (s *Session) resize(ctx context.Context, containerID, execID string, size Size) error {
	_, err := s.agent.TtyWinResize(ctx, size.request(containerID, execID))
	switch {
	case err == nil || status.Code(err) == codes.NotFound:
		return nil
	case strings.Contains(err.Error(), "no tty"): // the text of agent.ErrNoTerminal
		return &NoTerminalError{name: nameOf(containerID, execID)}
	default:
		return fmt.Errorf("TtyWinResize: %w", err)
	}
}

// NoTerminalError says that a process was to be used with a terminal and has none.
type NoTerminalError struct{ name string }

// Error names the process.
func (e *NoTerminalError) Error() string { return fmt.Sprintf("%s has no terminal", e.name) }

// WriteStdin writes data, of which there must be some, to a process's standard input.
func (s *Session) WriteStdin(ctx context.Context, containerID, execID string, data []byte) error {
	return s.step("WriteStdin("+nameOf(containerID, execID)+")", func() error { return s.write(ctx, containerID, execID, data) })
}

// CloseStdin ends a process's standard input.
func (s *Session) CloseStdin(ctx context.Context, containerID, execID string) error {
	return s.step("CloseStdin("+nameOf(containerID, execID)+")", func() error { return s.closeInput(ctx, containerID, execID) })
}

// Resize sets the size of a process's terminal.
func (s *Session) Resize(ctx context.Context, containerID, execID string, size Size) error {
	_, err := ask(ctx, s, "TtyWinResize("+nameOf(containerID, execID)+")", s.agent.TtyWinResize, size.request(containerID, execID))
	return err
}
