// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// receiveTimeout bounds the wait for a terminal. The runtime has sent it before it exits, so that it is there already.
const receiveTimeout = 5 * time.Second

// terminal is the socket by which a runtime hands over the master end of a terminal that it has made (runc's
// docs/terminals.md, "detached"). It implements runc.ConsoleSocket.
type terminal struct {
	listener *net.UnixListener
	dir      *os.File
}

// newTerminal makes the socket in a folder. Its name goes through the folder's descriptor, as the name of a socket has
// at most 107 bytes.
func newTerminal(dir string) (*terminal, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	t := &terminal{dir: d}
	t.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: t.Path(), Net: "unix"})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make console socket: %w", err), d.Close())
	}
	t.listener.SetUnlinkOnClose(false) // the folder is removed as a whole
	return t, nil
}

// Path implements runc.ConsoleSocket.
func (t *terminal) Path() string { return fmt.Sprintf("/proc/%d/fd/%d/tty", os.Getpid(), t.dir.Fd()) }

// receive returns the terminal's master end, in non-blocking mode.
func (t *terminal) receive() (*os.File, error) {
	if err := t.listener.SetDeadline(time.Now().Add(receiveTimeout)); err != nil {
		return nil, err
	}
	conn, err := t.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	defer func() { _ = conn.Close() }() // nothing is written
	if err := conn.SetDeadline(time.Now().Add(receiveTimeout)); err != nil {
		return nil, err
	}
	name, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, rights)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	fds, err := receivedFiles(rights[:n])
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	if len(fds) != 1 {
		return nil, fmt.Errorf("receive terminal: the runtime has sent %d files", len(fds))
	}
	unix.CloseOnExec(fds[0]) // Go's net package asks for it already
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(fmt.Errorf("receive terminal: %w", err), unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func receivedFiles(rights []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	return unix.ParseUnixRights(&messages[0]) // there is room for one
}

func (t *terminal) close() {
	_ = t.listener.Close() // a terminal that nobody has received is closed with it
	_ = t.dir.Close()
}
