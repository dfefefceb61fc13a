// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package proc

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is an adopted process.
type Process struct {
	reaper *Reaper
	pid    int
	pidfd  *os.File // nil where the kernel has none
	done   chan struct{}
	status int
	err    error
}

// Adopt claims a child process of this program, waits for it in the background and collects its status. The process
// may have exited already. It is an error if the pid is no child or has been adopted before.
//
// Waiting costs no thread: a pidfd in the runtime's poller tells of the exit. Where the kernel has no pidfd, a thread
// waits for each process, and Close does not end that wait; this is logged once.
func (r *Reaper) Adopt(pid int) (*Process, error) {
	if pid <= 1 {
		return nil, fmt.Errorf("adopt process %d: not a pid that can be waited for", pid)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("adopt process %d: %w", pid, ErrClosed)
	}
	if r.adopted[pid] != nil {
		return nil, fmt.Errorf("adopt process %d: it has been adopted before", pid)
	}
	if err := isChild(pid); err != nil {
		return nil, fmt.Errorf("adopt process %d: %w", pid, err)
	}
	p := &Process{reaper: r, pid: pid, done: make(chan struct{})}
	fd, err := r.openPidfd(pid)
	if err == nil {
		p.pidfd = os.NewFile(uintptr(fd), "pidfd")
		r.waits.Go(p.waitPidfd)
	} else {
		r.warnFallback(err)
		go p.waitThread()
	}
	r.adopted[pid] = p
	return p, nil
}

func (r *Reaper) warnFallback(err error) {
	r.fallback.Do(func() {
		r.log.Warn("no pidfd to wait on, using a thread for each process", "error", err)
	})
}

// isChild reports an error unless pid is a child, running or zombie, of this program.
func isChild(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// reap collects the status of a child if it has exited. It does not block.
func reap(pid int) (code int, done bool, err error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(pid, &ws, unix.WNOHANG|unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, false, err
		default:
			return status(ws), got == pid, nil
		}
	}
}

// collect reaps the process and drops the claim on it, both at once, since its pid is free from then on.
func (p *Process) collect() (done bool) {
	p.reaper.mu.Lock()
	defer p.reaper.mu.Unlock()
	code, done, err := reap(p.pid)
	if !done && err == nil {
		return false
	}
	if err != nil {
		p.err = fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	p.status = code
	p.finish()
	return true
}

// finish is called with the reaper's lock held, once.
func (p *Process) finish() {
	delete(p.reaper.adopted, p.pid)
	close(p.done)
}

// abandon wakes the wait on a pidfd. It does not close the pidfd, since that would wait for the wait to end.
func (p *Process) abandon() {
	if p.pidfd != nil {
		_ = p.pidfd.SetReadDeadline(time.Unix(1, 0)) // fails only if the wait is over
	}
}

func (p *Process) waitPidfd() {
	conn, err := p.pidfd.SyscallConn()
	if err == nil {
		// The poller calls back at once and then each time that the pidfd becomes readable, which is when the process
		// has exited.
		err = conn.Read(func(uintptr) bool { return p.collect() })
	}
	_ = p.pidfd.Close() // nothing was written
	select {
	case <-p.done:
		return
	default:
	}
	select {
	case <-p.reaper.closing:
		p.reaper.mu.Lock()
		p.status, p.err = -1, ErrClosed
		p.finish()
		p.reaper.mu.Unlock()
	default:
		p.reaper.warnFallback(err)
		go p.waitThread() // Close must not wait for it
	}
}

// waitThread blocks a thread until the process has exited.
func (p *Process) waitThread() {
	for {
		err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT|unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) && p.collect() {
			return
		}
	}
}

// PID returns the process id. Once Done is closed, it may belong to another process.
func (p *Process) PID() int { return p.pid }

// Done is closed when the process has exited and its status is there.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status returns the exit code of the process, or 128 and the number of the signal that ended it. It is valid after
// Done; an error means that the status is lost.
func (p *Process) Status() (int, error) { return p.status, p.err }

// Signal sends a signal. A process that has exited is os.ErrProcessDone.
func (p *Process) Signal(sig unix.Signal) error {
	// The lock keeps the process from being reaped, and so its pid from being taken by another.
	p.reaper.mu.Lock()
	defer p.reaper.mu.Unlock()
	if p.reaper.adopted[p.pid] != p {
		return os.ErrProcessDone
	}
	err := unix.Kill(p.pid, sig)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

// Handles reports whether the process blocks, ignores or catches the signal, that is, whether anything but the
// signal's default action would happen.
func (p *Process) Handles(sig unix.Signal) (bool, error) {
	f, err := os.Open(filepath.Join(p.reaper.procDir, strconv.Itoa(p.pid), "status"))
	if err != nil {
		return false, fmt.Errorf("read signal masks of process %d: %w", p.pid, err)
	}
	defer f.Close()
	found := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), ":")
		if !ok || (name != "SigBlk" && name != "SigIgn" && name != "SigCgt") {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return false, fmt.Errorf("read signal masks of process %d: %w", p.pid, err)
		}
		found++
		if sig > 0 && mask&(1<<(uint(sig)-1)) != 0 {
			return true, nil
		}
	}
	if found != 3 {
		return false, fmt.Errorf("read signal masks of process %d: its status does not show them", p.pid)
	}
	return false, nil
}
