// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package proc

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed means that the Reaper was closed before the process exited: its status is not known.
var ErrClosed = errors.New("reaper is closed")

// Reaper starts children, waits for adopted processes and sweeps up orphans. One is enough for a program.
type Reaper struct {
	log       *slog.Logger
	procDir   string
	openPidfd func(pid int) (int, error)

	closing   chan struct{}
	closeOnce sync.Once
	// waits counts the sweeper and the goroutines that wait on a pidfd; Close ends and awaits them.
	waits    sync.WaitGroup
	fallback sync.Once

	mu      sync.Mutex
	closed  bool
	adopted map[int]*Process
	started map[int]int // pid -> number of claims; see unclaim
	holds   int
	seen    sightings
}

// New returns a Reaper and makes the program a child subreaper unless it is PID 1, so that it becomes the parent of
// the processes that the OCI runtime leaves behind. A nil log discards.
func New(log *slog.Logger) (*Reaper, error) {
	if os.Getpid() != 1 {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("become child subreaper: %w", err)
		}
	}
	r := newReaper(log)
	r.waits.Go(func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGCHLD)
		defer signal.Stop(signals)
		r.sweepLoop(signals, r.sweep)
	})
	return r, nil
}

func newReaper(log *slog.Logger) *Reaper {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Reaper{
		log:       log,
		procDir:   "/proc",
		openPidfd: func(pid int) (int, error) { return unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK) },
		closing:   make(chan struct{}),
		adopted:   make(map[int]*Process),
		started:   make(map[int]int),
		seen:      make(sightings),
	}
}

// Close ends the sweeper and every wait for an adopted process; those that have not exited are done with ErrClosed.
// It does not end the processes themselves.
func (r *Reaper) Close() error {
	r.closeOnce.Do(func() {
		close(r.closing)
		r.mu.Lock()
		r.closed = true
		for _, p := range r.adopted {
			p.abandon()
		}
		r.mu.Unlock()
	})
	r.waits.Wait()
	return nil
}

// Hold keeps the sweeper from reaping anything until release is called, which may happen more than once. It is for
// the time between starting a process and knowing its pid.
func (r *Reaper) Hold() (release func()) {
	r.mu.Lock()
	r.holds++
	r.mu.Unlock()
	return sync.OnceFunc(func() {
		r.mu.Lock()
		r.holds--
		r.mu.Unlock()
	})
}

// claim notes that a wait for the started child is under way.
func (r *Reaper) claim(pid int) {
	r.mu.Lock()
	r.started[pid]++
	r.mu.Unlock()
}

// unclaim undoes claim after the child has been reaped. Claims are counted, because its pid may be in use again.
func (r *Reaper) unclaim(pid int) {
	r.mu.Lock()
	if r.started[pid]--; r.started[pid] == 0 {
		delete(r.started, pid)
	}
	r.mu.Unlock()
}

// sweepLoop sweeps sweepInterval after a SIGCHLD, and goes on at that interval while sweep says that something is
// left to look at.
func (r *Reaper) sweepLoop(signals <-chan os.Signal, sweep func(now time.Time) (left bool)) {
	for {
		select {
		case <-r.closing:
			return
		case <-signals:
		}
		for left := true; left; {
			select {
			case <-r.closing:
				return
			case now := <-time.After(sweepInterval):
				left = sweep(now)
			}
		}
	}
}

// sweep reaps what has been unclaimed for long enough and reports whether unclaimed zombies are left.
func (r *Reaper) sweep(now time.Time) (left bool) {
	zombies, err := findZombies(r.procDir, os.Getpid())
	if err != nil {
		r.log.Error("cannot look for orphaned processes", "error", err)
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	due := r.seen.update(now, zombies, r.holds > 0, func(pid int) bool {
		return r.adopted[pid] != nil || r.started[pid] > 0
	})
	for _, pid := range due {
		status, done, err := reap(pid)
		if err != nil || !done {
			continue // somebody was faster, or threads of it still run
		}
		r.log.Debug("swept up an orphan", "pid", pid, "status", status)
	}
	return len(r.seen) > 0
}
