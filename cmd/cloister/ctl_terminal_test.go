// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/rpc"
)

// newTerminal makes a pseudo-terminal of 33x44 characters, see pty(7): the side of who sits at it, and that of a program.
func newTerminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	err = errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0),
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 44}))
	user = os.NewFile(uintptr(fd), "terminal")
	if err != nil {
		t.Fatal(errors.Join(err, user.Close()))
	}
	if program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(errors.Join(err, user.Close()))
	}
	t.Cleanup(func() {
		_ = user.Close() // ends a read of the other side too
		_ = program.Close()
	})
	return user, program
}

// TestCtlTerminal types at a terminal in which a command runs: keys go to the guest at once and are echoed by it alone,
// the guest learns the size, and the terminal is as before at the end.
func TestCtlTerminal(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]struct {
		end  string
		code int
		call string
	}{
		"exec -it c1 -- sh":   {end: "\x04", code: 3, call: `exec c1 ["sh"] true &{33 44}`},
		"attach -i -t c1":     {end: "\x04", code: 3, call: "resize 33 44"},
		"attach --tty -i c1 ": {end: "\x1d", code: 0, call: "resize 33 44"},
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			g := newGuest()
			g.output <- []byte("ready\n") // once it is shown, the terminal is in raw mode
			user, program := newTerminal(t)
			before, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			root := newRootCommand()
			root.SetIn(program)
			root.SetOut(program)
			root.SetErr(program)
			root.SetArgs(append([]string{"ctl", "--address", serve(t, g, measured{}, rpc.AllowAll)}, strings.Fields(line)...))
			done := make(chan error, 1)
			go func() { done <- root.ExecuteContext(t.Context()) }()
			shown := bufio.NewReader(user)
			if text, err := shown.ReadString('\n'); err != nil || text != "ready\n" {
				t.Errorf("shown %q, %v", text, err)
			}
			if _, err := user.WriteString("ab\x03"); err != nil {
				t.Fatal(err)
			}
			if text, err := shown.ReadString(3); err != nil || text != "ab\x03" {
				t.Errorf("shown %q, %v", text, err)
			}
			if _, err := user.WriteString(want.end); err != nil { // after the echo, which the end might overtake
				t.Fatal(err)
			}
			if err := <-done; exitCode(err) != want.code {
				t.Errorf("error %v, want the exit code %d", err, want.code)
			}
			if after, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS); err != nil || *after != *before {
				t.Errorf("the terminal is in the mode %+v, %v; it was %+v", after, err, before)
			}
			if !slices.Contains(g.calls(), want.call) || !slices.Contains(g.calls(), "resize 33 44") {
				t.Errorf("calls %q, want %q", g.calls(), want.call)
			}
		})
	}
}
