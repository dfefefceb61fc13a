// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"os"
	"testing"
)

// The end of a terminal's input that could not be written in time can be asked for again.
func TestEndOfTerminalCanBeRepeated(t *testing.T) {
	reader, writer, err := os.Pipe() // no terminal: its end-of-file character is the usual one
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	in := newTerminalInput(writer)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in.turn <- struct{}{} // somebody writes
	if err := in.end(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("end behind a write: %v", err)
	}
	<-in.turn
	for range 2 {
		if err := in.end(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := in.write(t.Context(), []byte("x")); !errors.Is(err, ErrNoWriter) {
		t.Errorf("write after the end: %v", err)
	}
	_ = writer.Close()
	got := make([]byte, 8)
	if n, err := reader.Read(got); err != nil || n != 1 || got[0] != 4 {
		t.Errorf("the terminal got %q, %v; want one end-of-file character", got[:n], err)
	}
}
