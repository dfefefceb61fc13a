// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package debugconsole

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/procfs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent/proc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testConsole(t *testing.T) *Console {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	reaper, err := proc.New(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reaper.Close() })
	c, err := New(reaper, []string{"/nonexistent", "/", "/etc/passwd", "/bin/sh"}, log)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serve serves on a unix socket and returns its address and a function that ends it.
func serve(t *testing.T) (address string, stop func()) {
	t.Helper()
	c := testConsole(t)
	address = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return address, stop
}

type client struct {
	conn io.ReadWriteCloser
	out  *bufio.Reader
}

func dial(t *testing.T, address string) client {
	t.Helper()
	conn, err := net.Dial("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return client{conn, bufio.NewReader(conn)}
}

// ask types a command and returns what it prints after "<" and before ">". The command must not contain these as the
// terminal echoes it; \074 and \076 are the two for printf.
func (c client) ask(t *testing.T, format, args string) string {
	t.Helper()
	if _, err := fmt.Fprintf(c.conn, "printf '\\074%s\\076' %s\n", format, args); err != nil {
		t.Fatal(err)
	}
	if _, err := c.out.ReadString('<'); err != nil {
		t.Fatal(err)
	}
	answer, err := c.out.ReadString('>')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(answer, ">")
}

func (c client) pid(t *testing.T, what string) int {
	t.Helper()
	pid, err := strconv.Atoi(c.ask(t, "%s", what))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// awaitExit waits until the process behind the pidfd has exited.
func awaitExit(t *testing.T, pidfd int) {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 30_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("the process still runs (%v)", err)
		}
		return
	}
}

func pidfd(t *testing.T, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

type terminalInfo struct {
	unix.Winsize
	name string
}

// terminal looks at the standard input and the state of a shell.
func terminal(t *testing.T, pid int) (terminalInfo, procfs.ProcStat) {
	t.Helper()
	fd := fmt.Sprintf("/proc/%d/fd/0", pid)
	name, err := os.Readlink(fd)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fd, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	size, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		t.Fatal(err)
	}
	p, err := procfs.NewProc(pid)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := p.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return terminalInfo{*size, name}, stat
}

func TestShellHasItsOwnTerminal(t *testing.T) {
	address, _ := serve(t)
	a, b := dial(t, address), dial(t, address)
	sh := a.pid(t, "$$")
	if sid, err := unix.Getsid(sh); err != nil || sid != sh {
		t.Errorf("session %d of shell %d, %v", sid, sh, err)
	}
	size, stat := terminal(t, sh)
	if size.Row != 24 || size.Col != 80 {
		t.Errorf("size %+v", size)
	}
	other, _ := terminal(t, b.pid(t, "$$"))
	if size.name == other.name || !strings.HasPrefix(size.name, "/dev/pts/") {
		t.Errorf("terminals %q and %q", size.name, other.name)
	}
	if stat.TTY == 0 || stat.TPGID != sh {
		t.Errorf("controlling terminal %d, foreground group %d; want one, and %d", stat.TTY, stat.TPGID, sh)
	}
	if got := a.ask(t, "%s %s", "$PWD $HOME"); got != "/ /" {
		t.Errorf("directory and home %q", got)
	}
}

func TestExitClosesConnection(t *testing.T) {
	t.Setenv("CONSOLE_CANARY", "x")
	address, _ := serve(t)
	c := dial(t, address)
	if got := c.ask(t, "%s", "${CONSOLE_CANARY-unset}"); got != "unset" {
		t.Errorf("the agent's environment is inherited: %q", got)
	}
	_, _ = io.WriteString(c.conn, "(trap '' HUP; exec sleep 1000) & printf '\\074%s\\076' $!; read x; echo la''st; exit 3\n")
	_, _ = c.out.ReadString('<')
	answer, _ := c.out.ReadString('>')
	job, err := strconv.Atoi(strings.TrimSuffix(answer, ">"))
	if err != nil {
		t.Fatal(err)
	}
	fd := pidfd(t, job)
	_, _ = io.WriteString(c.conn, "\n")
	rest, err := io.ReadAll(c.out)
	if err != nil || !strings.Contains(string(rest), "last") {
		t.Errorf("%q, %v", rest, err)
	}
	awaitExit(t, fd)
}

func TestHangUpKillsSession(t *testing.T) {
	for name, hangUp := range map[string]func(t *testing.T, c client, stop func()){
		"close":      func(_ *testing.T, c client, _ func()) { _ = c.conn.Close() },
		"half close": func(_ *testing.T, c client, _ func()) { _ = c.conn.(*net.UnixConn).CloseWrite() },
		"end":        func(_ *testing.T, _ client, stop func()) { stop() },
	} {
		t.Run(name, func(t *testing.T) {
			address, stop := serve(t)
			c := dial(t, address)
			_, _ = io.WriteString(c.conn, "trap '' HUP; set -m; (trap '' HUP; exec sleep 1000) & job=$!\n")
			fds := []int{pidfd(t, c.pid(t, "$$")), pidfd(t, c.pid(t, "$job"))}
			hangUp(t, c, stop)
			for _, fd := range fds {
				awaitExit(t, fd)
			}
		})
	}
}

// A client that reads nothing does not keep Serve from ending.
func TestClientThatDoesNotRead(t *testing.T) {
	address, stop := serve(t)
	c := dial(t, address)
	fd := pidfd(t, c.pid(t, "$$"))
	_, _ = io.WriteString(c.conn, "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done\n")
	if _, err := c.out.ReadString('x'); err != nil {
		t.Fatal(err)
	}
	stop()
	awaitExit(t, fd)
}

func TestLimit(t *testing.T) {
	address, _ := serve(t)
	var clients []client
	for range maxSessions {
		c := dial(t, address)
		c.pid(t, "$$")
		clients = append(clients, c)
	}
	if _, err := dial(t, address).out.ReadByte(); err == nil {
		t.Fatal("one more got a shell")
	}
	for _, c := range clients {
		c.pid(t, "$$")
	}
	_, _ = io.WriteString(clients[0].conn, "exit\n")
	_, _ = io.Copy(io.Discard, clients[0].out)
	for { // the place is free a moment after the connection is closed
		conn, err := net.Dial("unix", address)
		if err != nil {
			t.Fatal(err)
		}
		_, err = conn.Read(make([]byte, 1)) // the prompt
		_ = conn.Close()
		if err == nil {
			return
		}
	}
}

func TestRun(t *testing.T) {
	c := testConsole(t)
	master, slave, err := openPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close() // open all the time: a read of the master fails without a reader on the other side
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	run := func() { done <- c.Run(ctx, slave.Name()) }

	go run()
	cl := client{master, bufio.NewReader(master)}
	sh := cl.pid(t, "$$")
	if sid, err := unix.Getsid(sh); err != nil || sid != sh {
		t.Errorf("session %d of shell %d, %v", sid, sh, err)
	}
	_, _ = io.WriteString(master, "exit\n")
	if err := <-done; err != nil {
		t.Error(err)
	}

	go run()
	fd := pidfd(t, cl.pid(t, "$$"))
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	awaitExit(t, fd)
}

func TestErrors(t *testing.T) {
	c := testConsole(t)
	if _, err := New(nil, []string{"/nonexistent", "/"}, nil); err == nil {
		t.Error("no shell is no error")
	}
	if err := c.Run(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no terminal: %v", err)
	}
	if err := c.Run(t.Context(), os.DevNull); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("/dev/null as a terminal: %v", err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := c.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed listener: %v", err)
	}
}
