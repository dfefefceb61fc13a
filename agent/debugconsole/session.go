// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package debugconsole

import (
	"fmt"
	"os"

	"github.com/containerd/console"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// killRounds bounds how often endSession looks for processes that were made while it killed their parents.
const killRounds = 10

// openPty returns the two ends of a new terminal. Reads of the first end when it is closed, which they do not with what
// console.NewPty returns: its descriptor is a blocking one.
func openPty() (master, slave *os.File, err error) {
	pty, path, err := console.NewPty()
	if err != nil {
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	defer pty.Close()
	if err := pty.Resize(console.WinSize{Height: 24, Width: 80}); err != nil {
		return nil, nil, fmt.Errorf("set size of terminal: %w", err)
	}
	fd, err := unix.FcntlInt(pty.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("duplicate terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, nil, fmt.Errorf("make terminal non-blocking: %w", err)
	}
	master = os.NewFile(uintptr(fd), "pty")
	slave, err = os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		_ = master.Close()
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	return master, slave, nil
}

// endSession kills the processes of the session that pid leads or has led. Killing its process group alone would leave
// what an interactive shell has in groups of their own: each of its jobs. While a member lives, no other process gets
// the number.
func endSession(pid int) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		_ = unix.Kill(-pid, unix.SIGKILL) // without /proc, what there is
		return
	}
	for range killRounds {
		processes, err := fs.AllProcs()
		if err != nil {
			_ = unix.Kill(-pid, unix.SIGKILL)
			return
		}
		found := false
		for _, p := range processes {
			stat, err := p.Stat()
			if err != nil || stat.Session != pid || stat.State == "Z" || stat.State == "X" {
				continue // it has gone, or is none of them
			}
			found = true
			_ = unix.Kill(p.PID, unix.SIGKILL) // fails only if it has gone
		}
		if !found {
			return
		}
	}
}
