// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Console connects in and out with the debug console of a guest at conn, which it closes, until the shell there exits,
// or the user presses Ctrl-] at terminal, or ctx ends. terminal is nil where in is none; then the end of in exits the
// shell. in is read in a goroutine that outlives Console until the Read that is under way returns.
func Console(ctx context.Context, conn net.Conn, in io.Reader, out io.Writer, terminal *Terminal) (err error) {
	defer conn.Close()
	if terminal != nil {
		restore, err := terminal.raw()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, restore()) }()
		in = Detachable(in)
	}
	over := make(chan error, 1) // how the input ended, if that was first
	go func() {
		if err := typeTo(conn, in); err != nil {
			over <- err
			_ = conn.SetReadDeadline(time.Unix(1, 0)) // wakes the copy
		}
	}()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	_, err = io.Copy(out, conn)
	select {
	case ended := <-over:
		if errors.Is(ended, ErrDetached) {
			return nil
		}
		return ended
	default:
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("debug console: %w", err)
	}
	return nil
}

// endOfInput is Ctrl-D.
const endOfInput = 4

// typeTo types what is read from r at the guest's terminal, and Ctrl-D at its end. A connection that takes nothing any
// more is no error here: its other direction tells why.
func typeTo(conn io.Writer, r io.Reader) error {
	buf := make([]byte, chunkSize)
	midLine := false
	for {
		n, err := r.Read(buf)
		if n > 0 {
			midLine = !bytes.HasSuffix(buf[:n], []byte{'\n'})
			if _, err := conn.Write(buf[:n]); err != nil {
				return nil //nolint:nilerr // see above
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			end := []byte{endOfInput}
			if midLine { // it ends the input only at the start of a line
				end = []byte{'\n', endOfInput}
			}
			_, _ = conn.Write(end)
			return nil
		case err != nil:
			return fmt.Errorf("read input for the debug console: %w", err)
		}
	}
}
