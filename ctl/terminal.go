// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// Size is the size of a terminal in characters; the zero value is not known.
type Size struct{ Rows, Columns uint32 }

func (s Size) request(containerID, execID string) *pb.TtyWinResizeRequest {
	return &pb.TtyWinResizeRequest{ContainerId: containerID, ExecId: execID, Row: s.Rows, Column: s.Columns}
}

// Terminal is the terminal at which the user sits.
type Terminal struct{ file *os.File }

// NewTerminal returns the terminal that f is, which stays the caller's; false if it is none.
func NewTerminal(f *os.File) (*Terminal, bool) {
	if !term.IsTerminal(int(f.Fd())) {
		return nil, false
	}
	return &Terminal{f}, true
}

// Size returns the terminal's size, which is not known of every terminal.
func (t *Terminal) Size() Size {
	columns, rows, err := term.GetSize(int(t.file.Fd()))
	if err != nil || columns <= 0 || rows <= 0 {
		return Size{}
	}
	return Size{Rows: uint32(rows), Columns: uint32(columns)}
}

// raw puts the terminal into raw mode: keys go to the guest as they are typed, Ctrl-C too, and the guest's terminal
// echoes them. The caller must call restore.
func (t *Terminal) raw() (restore func() error, err error) {
	fd := int(t.file.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("put terminal into raw mode: %w", err)
	}
	return func() error {
		if err := term.Restore(fd, before); err != nil {
			return fmt.Errorf("restore terminal: %w", err)
		}
		return nil
	}, nil
}

// watch calls resized with the terminal's size, where that is known, and again each time that the size changes until ctx
// ends.
func (t *Terminal) watch(ctx context.Context, resized func(Size) error) error {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	defer signal.Stop(changed)
	var last Size
	for {
		if size := t.Size(); size != last {
			last = size
			if err := resized(size); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// ErrDetached is the error of a Detachable whose user has left.
var ErrDetached = errors.New("detached")

// detachKey is Ctrl-], by which telnet and virsh are left too.
const detachKey = 0x1d

// Detachable reads r up to a Ctrl-], and is ErrDetached then.
func Detachable(r io.Reader) io.Reader { return detachable{r} }

type detachable struct{ r io.Reader }

// Read reads up to the key.
func (d detachable) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if i := bytes.IndexByte(p[:n], detachKey); i >= 0 {
		return i, ErrDetached
	}
	return n, err
}
