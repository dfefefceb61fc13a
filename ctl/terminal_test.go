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
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// screen is a terminal with somebody at it: what is shown, and keys.
type screen struct {
	master *os.File
	tty    *os.File
	before unix.Termios
	read   chan struct{} // closed when no more is shown

	mu    sync.Mutex
	shown bytes.Buffer
	more  chan struct{} // closed when more is shown
}

func newScreen(t *testing.T, rows, columns uint16) *screen {
	t.Helper()
	master, path := newPty(t)
	s := &screen{master: master, read: make(chan struct{}), more: make(chan struct{})}
	s.resize(t, rows, columns)
	var err error
	if s.tty, err = os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	s.before = s.mode(t)
	go s.watch()
	t.Cleanup(func() {
		if now := s.mode(t); now != s.before {
			t.Errorf("the terminal is left in the mode %+v, it was %+v", now, s.before)
		}
		_ = master.Close() // ends a read of the other side too
		<-s.read
		_ = s.tty.Close()
	})
	return s
}

// newPty makes a pseudo-terminal, see pty(7), and returns its master and the path of the other side.
func newPty(t *testing.T) (master *os.File, path string) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	control(t, master, func(fd int) error {
		n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		path = fmt.Sprintf("/dev/pts/%d", n)
		return errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	})
	return master, path
}

// control calls f with the descriptor of a file, which stays in non-blocking mode.
func control(t *testing.T, file *os.File, f func(fd int) error) {
	t.Helper()
	conn, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failure error
	if err := errors.Join(conn.Control(func(fd uintptr) { failure = f(int(fd)) }), failure); err != nil {
		t.Fatal(err)
	}
}

func (s *screen) mode(t *testing.T) unix.Termios {
	t.Helper()
	mode, err := unix.IoctlGetTermios(int(s.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *mode
}

func (s *screen) resize(t *testing.T, rows, columns uint16) {
	t.Helper()
	control(t, s.master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
}

func (s *screen) watch() {
	defer close(s.read)
	buf := make([]byte, 1024)
	for {
		n, err := s.master.Read(buf)
		s.mu.Lock()
		s.shown.Write(buf[:n])
		close(s.more)
		s.more = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// wait waits until a text is shown.
func (s *screen) wait(t *testing.T, text string) {
	t.Helper()
	patience := time.After(20 * time.Second) // to say what is shown instead
	for {
		s.mu.Lock()
		shown, more := s.shown.String(), s.more
		s.mu.Unlock()
		if strings.Contains(shown, text) {
			return
		}
		select {
		case <-more:
		case <-patience:
			t.Fatalf("the terminal shows %q, without %q", shown, text)
		}
	}
}

func (s *screen) keys(t *testing.T, keys string) {
	t.Helper()
	if _, err := io.WriteString(s.master, keys); err != nil {
		t.Fatal(err)
	}
}

func (s *screen) streams(t *testing.T) Streams {
	t.Helper()
	terminal, ok := NewTerminal(s.tty)
	if !ok {
		t.Fatal("a terminal was not recognised")
	}
	return Streams{Stdin: s.tty, Stdout: s.tty, Stderr: s.tty, Terminal: terminal}
}

// TestTerminal works in a shell on a terminal: keys, among them Ctrl-D, its size and that it changes, and the status.
func TestTerminal(t *testing.T) {
	b := native(t)
	b.start(t, "c1", "sleep 1000")
	s := newScreen(t, 33, 44)
	p := shell(`trap 'echo caught; over=1' INT; echo "$TERM"; while [ -z "$over" ]; do sleep 0.02; done
read line; echo "got $line"; stty size
over=; trap 'stty size; over=1' WINCH; echo resize; while [ -z "$over" ]; do sleep 0.02; done
read line || echo eof; exit 3`)
	st := s.streams(t)
	p.Terminal = true
	if err := b.Exec(t.Context(), "c1", "e1", p); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- b.Interact(t.Context(), "c1", "e1", st) }()
	s.wait(t, "xterm\r\n")
	if s.mode(t).Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		t.Error("the terminal is not in raw mode")
	}
	s.keys(t, "\x03")
	s.wait(t, "caught\r\n")
	s.keys(t, "hello\r")
	s.wait(t, "got hello\r\n33 44\r\nresize\r\n")
	s.resize(t, 55, 66)
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil { // the kernel tells only whose terminal it is
		t.Fatal(err)
	}
	s.wait(t, "55 66\r\n")
	s.keys(t, "\x04")
	s.wait(t, "eof\r\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if status, err := b.Wait(t.Context(), "c1", "e1"); status != 3 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
}

// TestTerminalIsRestored: also when the user detaches, when it is interrupted and when the process has no terminal. The
// screen checks that.
func TestTerminalIsRestored(t *testing.T) {
	b := native(t)
	b.start(t, "c1", "sleep 1000")
	p := shell("echo ready; sleep 1000")
	p.Terminal = true
	for _, id := range []string{"e1", "e2"} {
		if err := b.Exec(t.Context(), "c1", id, p); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("detached", func(t *testing.T) {
		s := newScreen(t, 1, 2)
		st := s.streams(t)
		st.Stdin = Detachable(st.Stdin)
		done := make(chan error, 1)
		go func() { done <- b.Interact(t.Context(), "c1", "e1", st) }()
		s.wait(t, "ready")
		s.keys(t, "x\x1dy")
		if err := <-done; !errors.Is(err, ErrDetached) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		s := newScreen(t, 1, 2)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		st := s.streams(t)
		go func() { done <- b.Interact(ctx, "c1", "e2", st) }()
		s.wait(t, "ready")
		cancel()
		if err := <-done; err == nil {
			t.Error("no error")
		}
	})
	t.Run("no terminal there", func(t *testing.T) {
		s := newScreen(t, 1, 2)
		err := b.Interact(t.Context(), "c1", "", s.streams(t))
		if _, ok := errors.AsType[*NoTerminalError](err); !ok {
			t.Errorf("got %v", err)
		}
	})
}

func TestNoTerminal(t *testing.T) {
	t.Parallel()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, ok := NewTerminal(f); ok {
		t.Error("/dev/null passed for a terminal")
	}
}

// guestConsole stands for a debug console: it prompts once, says what it was told and ends at Ctrl-D, with the last words bye.
func guestConsole(conn net.Conn) {
	defer conn.Close()
	_, _ = io.WriteString(conn, "$ ")
	buf := make([]byte, 100)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		text := buf[:n]
		eof := bytes.HasSuffix(text, []byte{endOfInput})
		_, _ = conn.Write(bytes.TrimSuffix(text, []byte{endOfInput}))
		if eof {
			_, _ = io.WriteString(conn, "bye")
			return
		}
	}
}

func TestConsole(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"id\n": "$ id\nbye", "id": "$ id\nbye", "": "$ bye"} {
		near, far := net.Pipe()
		go guestConsole(far)
		var out bytes.Buffer
		if err := Console(t.Context(), near, strings.NewReader(in), &out, nil); err != nil || out.String() != want {
			t.Errorf("%q: %q, %v", in, &out, err)
		}
	}
	near, far := net.Pipe()
	go guestConsole(far)
	if err := Console(t.Context(), near, failing{errTest}, io.Discard, nil); !errors.Is(err, errTest) {
		t.Errorf("input that fails: %v", err)
	}
}

// TestConsoleTerminal leaves a console by Ctrl-], by the shell's end and by an interrupt.
func TestConsoleTerminal(t *testing.T) {
	for name, keys := range map[string]string{"left": "\x1d", "ended": "\x04", "interrupted": ""} {
		t.Run(name, func(t *testing.T) {
			s := newScreen(t, 1, 2)
			near, far := net.Pipe()
			go guestConsole(far)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			st := s.streams(t)
			go func() { done <- Console(ctx, near, s.tty, s.tty, st.Terminal) }()
			s.wait(t, "$ ")
			s.keys(t, "hello")
			s.wait(t, "hello")
			if keys == "" {
				cancel()
			} else {
				s.keys(t, keys)
			}
			if err := <-done; (err == nil) != (keys != "") {
				t.Error(err)
			}
		})
	}
}
