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
)

// input is the agent's end of a process's standard input: a pipe, or the master of its terminal.
type input struct {
	turn     chan struct{} // holds a token while somebody writes
	terminal bool

	mu   sync.Mutex
	file *os.File // nil once the input has ended
	// midLine says that a terminal has got an unfinished line.
	midLine bool
}

// newInput makes a pipe of size bytes, or of the kernel's default size for 0. The caller closes the reader once the
// container process has it.
func newInput(size int) (in *input, reader *os.File, err error) {
	reader, writer, err := newPipe(size, 1)
	if err != nil {
		return nil, nil, err
	}
	return &input{turn: make(chan struct{}, 1), file: writer}, reader, nil
}

// newTerminalInput writes to the master end of a pseudo-terminal, which must be in non-blocking mode. The stream of that
// terminal closes it.
func newTerminalInput(master *os.File) *input {
	return &input{turn: make(chan struct{}, 1), file: master, terminal: true}
}

// write writes all of data, waiting for the process to take it. No data are the end of the input.
func (in *input) write(ctx context.Context, data []byte) error {
	if len(data) == 0 {
		return in.end(ctx)
	}
	select {
	case in.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-in.turn }()
	in.mu.Lock()
	file := in.file
	in.midLine = data[len(data)-1] != '\n'
	in.mu.Unlock()
	if file == nil {
		return ErrNoWriter
	}
	err := writeAll(ctx, file, data)
	switch {
	case err == nil || ctx.Err() != nil:
		return err
	case errors.Is(err, os.ErrClosed):
		return ErrNoWriter
	}
	return fmt.Errorf("write standard input: %w", err)
}

// writeAll writes all of data, or as much as it can until the context ends.
func writeAll(ctx context.Context, file *os.File, data []byte) error {
	for len(data) > 0 {
		n, err := writeBlocking(ctx, file, data)
		data = data[n:]
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, os.ErrDeadlineExceeded): // else the end of an earlier write's context came late
			return err
		}
	}
	return nil
}

// writeBlocking is one write that ends early, with os.ErrDeadlineExceeded, when the context does.
func writeBlocking(ctx context.Context, file *os.File, data []byte) (int, error) {
	stop := context.AfterFunc(ctx, func() {
		_ = file.SetWriteDeadline(time.Unix(1, 0)) // fails only if the file is closed
	})
	n, err := file.Write(data)
	stop()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = file.SetWriteDeadline(time.Time{})
	}
	return n, err
}

// end ends the input; a second time is no error. A pipe is closed. A terminal stays open, for the process still writes
// to it, and gets its end-of-file character, as when somebody types it.
func (in *input) end(ctx context.Context) error {
	if !in.terminal {
		in.close()
		return nil
	}
	select { // behind what is being written
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	in.mu.Lock()
	file, midLine := in.file, in.midLine
	in.mu.Unlock()
	if file == nil {
		return nil
	}
	eof := []byte{endOfFile(file)}
	if midLine { // the first one only hands the unfinished line on
		eof = append(eof, eof[0])
	}
	if err := writeAll(ctx, file, eof); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.EIO) {
		return fmt.Errorf("end the input of a terminal: %w", err)
	}
	in.close()
	return nil
}

// endOfFile is the character that ends the input of a terminal, see termios(3), VEOF.
func endOfFile(terminal *os.File) byte {
	const usual = 4 // Ctrl-D
	eof := byte(usual)
	control(terminal, func(fd int) {
		if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil && t.Cc[unix.VEOF] != 0 {
			eof = t.Cc[unix.VEOF]
		}
	})
	return eof
}

// close ends the input, for a writer that waits too. It may be called more than once.
func (in *input) close() {
	in.mu.Lock()
	file := in.file
	in.file = nil
	in.mu.Unlock()
	if file != nil && !in.terminal {
		_ = file.Close() // what the process has not read is lost either way
	}
}
