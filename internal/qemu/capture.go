// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package qemu

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Files in a capture folder: what the host held of a guest.
const (
	// CaptureNetwork is what passed over the guest's network device, in pcap format.
	CaptureNetwork = "network.pcap"
	// CaptureVsock is a folder with two files for each vsock connection, one for each direction.
	CaptureVsock = "vsock"
	// CaptureLog is QEMU's own log, CaptureArgs its command line.
	CaptureLog  = "qemu.log"
	CaptureArgs = "qemu.args"
	// CaptureConsole is what the guest wrote to its console.
	CaptureConsole = "console.log"
)

// captureArgs are QEMU's arguments for a capture.
func (c Config) captureArgs() []string {
	if c.Capture == "" {
		return nil
	}
	args := []string{"-D", filepath.Join(c.Capture, CaptureLog), "-d", "guest_errors,unimp"}
	if c.Network {
		args = append(args, "-object", "filter-dump,id=dump0,netdev=n0,maxlen=1048576,file="+escape(filepath.Join(c.Capture, CaptureNetwork)))
	}
	return args
}

// tee passes on the connections to a unix socket and writes what goes through into files.
type tee struct {
	listener net.Listener
	target   string
	dir      string

	mu   sync.Mutex
	err  error // the first that made a capture incomplete
	open map[net.Conn]bool
	wg   sync.WaitGroup
}

// startTee listens on a socket and passes on to target. The folder for the files is made.
func startTee(socket, target, dir string) (*tee, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("capture vsock: %w", err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("capture vsock: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("capture vsock: %w", err)
	}
	t := &tee{listener: l, target: target, dir: dir, open: make(map[net.Conn]bool)}
	t.wg.Go(t.accept)
	return t, nil
}

func (t *tee) accept() {
	for n := 1; ; n++ {
		conn, err := t.listener.Accept()
		if err != nil {
			return // closed
		}
		t.wg.Go(func() { t.fail(t.serve(conn, n)) })
	}
}

// serve passes on one connection until both directions have ended.
func (t *tee) serve(client net.Conn, n int) error {
	defer t.track(client)()
	guest, err := net.Dial("unix", t.target) //nolint:noctx // a local socket answers at once
	if err != nil {
		return nil // nothing was passed on, so that no capture is incomplete; the client sees the end
	}
	defer t.track(guest)()
	files := make([]*os.File, 2)
	for i, direction := range []string{"to-guest", "from-guest"} {
		f, err := os.OpenFile(filepath.Join(t.dir, fmt.Sprintf("%03d-%s", n, direction)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		files[i] = f
	}
	done := make(chan error, 1)
	go func() { done <- passOn(guest, client, files[0]) }()
	err = passOn(client, guest, files[1])
	return errors.Join(err, <-done)
}

// passOn copies until the source ends, and writes to the file before it passes anything on: what the other side has got
// is in the capture. Only errors of the file count.
func passOn(to, from net.Conn, file *os.File) error {
	defer func() {
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // the other side may be gone
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if _, err := file.Write(buf[:n]); err != nil {
			return errors.Join(err, file.Close())
		}
		if _, werr := to.Write(buf[:n]); err == nil {
			err = werr
		}
		if err != nil {
			return file.Close()
		}
	}
}

// track remembers a connection until the returned func closes it.
func (t *tee) track(c net.Conn) func() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[c] = true
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.open, c)
		_ = c.Close()
	}
}

func (t *tee) fail(err error) {
	if err == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
}

// close ends all connections, and returns what made the capture incomplete.
func (t *tee) close() error {
	_ = t.listener.Close() // never fails
	t.mu.Lock()
	for c := range t.open {
		_ = c.Close() // ends passOn
	}
	t.mu.Unlock()
	t.wg.Wait()
	if t.err != nil {
		return fmt.Errorf("capture vsock: %w", t.err)
	}
	return nil
}

// writeArgs keeps QEMU's command line, one argument in a line.
func (c Config) writeArgs(binary string, args []string) error {
	if c.Capture == "" {
		return nil
	}
	text := strings.Join(append([]string{binary}, args...), "\n") + "\n"
	return os.WriteFile(filepath.Join(c.Capture, CaptureArgs), []byte(text), 0o600)
}

// captureConsole returns where the console goes besides, and a func that closes it.
func (c Config) captureConsole() (io.Writer, func() error, error) {
	if c.Capture == "" {
		return io.Discard, func() error { return nil }, nil
	}
	f, err := os.OpenFile(filepath.Join(c.Capture, CaptureConsole), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("capture console: %w", err)
	}
	return f, f.Close, nil
}
