// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testReaper(t *testing.T) *Reaper {
	t.Helper()
	r, err := New(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// orphan runs script in a shell whose parent exits at once, as an OCI runtime does, and returns the shell's pid.
func orphan(t *testing.T, r *Reaper, script string) int {
	t.Helper()
	var out bytes.Buffer
	// Without the exec the launching shell may reap the other one before it exits itself.
	cmd := exec.Command("sh", "-c", `sh -c "$0" >/dev/null & exec echo $!`, script)
	cmd.Stdout = &out
	c, err := r.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if code, err := c.Wait(); err != nil || code != 0 {
		t.Fatalf("launcher: status %d, %v", code, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func adopt(t *testing.T, r *Reaper, script string) *Process {
	t.Helper()
	release := r.Hold()
	defer release()
	p, err := r.Adopt(orphan(t, r, script))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStartStatus(t *testing.T) {
	r := testReaper(t)
	for _, test := range []struct {
		script string
		want   int
	}{
		{"exit 0", 0},
		{"exit 7", 7},
		{"exit 255", 255},
		{"kill -9 $$", 128 + 9},
		{"kill -15 $$", 128 + 15},
	} {
		c, err := r.Start(exec.Command("sh", "-c", test.script))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, err := c.Wait(); err != nil || got != test.want {
				t.Errorf("%s: status %d, %v; want %d", test.script, got, err, test.want)
			}
		}
	}
}

// A background process that holds the output open keeps neither Wait nor the status back.
func TestStartOutputHeldOpen(t *testing.T) {
	r := testReaper(t)
	var out bytes.Buffer
	cmd := exec.Command("sh", "-c", "sleep 1000 & echo $!; exit 0")
	cmd.Stdout, cmd.WaitDelay = &out, 100*time.Millisecond
	c, err := r.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Wait(); err != nil || got != 0 {
		t.Errorf("status %d, %v", got, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Adopt(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	<-p.Done()
}

func TestStartErrors(t *testing.T) {
	r := testReaper(t)
	if _, err := r.Start(exec.Command("/does/not/exist")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("start of a missing file: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c, err := r.Start(exec.CommandContext(ctx, "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if code, err := c.Wait(); err != nil && !errors.Is(err, context.Canceled) || err == nil && code != 128+9 {
		t.Errorf("cancelled command: status %d, %v", code, err)
	}
	if n := len(r.started); n != 0 {
		t.Errorf("%d claims are left", n)
	}
}

func TestAdoptStatus(t *testing.T) {
	for _, way := range []string{"pidfd", "no pidfd"} {
		t.Run(way, func(t *testing.T) {
			r := testReaper(t)
			if way == "no pidfd" {
				r.openPidfd = func(int) (int, error) { return -1, unix.ENOSYS }
			}
			for _, test := range []struct {
				script string
				want   int
			}{
				{"exit 0", 0},
				{"exit 3", 3},
				{"sleep 0.2; exit 4", 4},
				{"kill -9 $$", 128 + 9},
			} {
				p := adopt(t, r, test.script)
				<-p.Done()
				if got, err := p.Status(); err != nil || got != test.want {
					t.Errorf("%s: status %d, %v; want %d", test.script, got, err, test.want)
				}
				if err := p.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
					t.Errorf("signal after the exit: %v", err)
				}
			}
		})
	}
}

// A descriptor that the poller does not take must lead to the fallback too, not to a lost status.
func TestAdoptWithoutPoller(t *testing.T) {
	r := testReaper(t)
	r.openPidfd = func(int) (int, error) { return unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_CLOEXEC, 0) }
	p := adopt(t, r, "sleep 0.2; exit 5")
	<-p.Done()
	if got, err := p.Status(); err != nil || got != 5 {
		t.Errorf("status %d, %v; want 5", got, err)
	}
}

func TestAdoptRefuses(t *testing.T) {
	r := testReaper(t)
	p := adopt(t, r, "exec sleep 1000")
	if _, err := r.Adopt(p.PID()); err == nil {
		t.Error("the same process was adopted twice")
	}
	for _, pid := range []int{-1, 0, 1, os.Getpid(), os.Getppid()} {
		if _, err := r.Adopt(pid); err == nil {
			t.Errorf("adopted %d, which is no child", pid)
		}
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if got, err := p.Status(); err != nil || got != 128+15 {
		t.Errorf("status %d, %v", got, err)
	}
}

func TestCloseEndsWaits(t *testing.T) {
	r := testReaper(t)
	p := adopt(t, r, "exec sleep 1000")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if _, err := p.Status(); !errors.Is(err, ErrClosed) {
		t.Errorf("status after Close: %v", err)
	}
	if _, err := r.Adopt(p.PID()); !errors.Is(err, ErrClosed) {
		t.Errorf("adopt after Close: %v", err)
	}
	if err := unix.Kill(p.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(p.PID(), &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
}

func TestHandles(t *testing.T) {
	r := testReaper(t)
	for _, test := range []struct {
		script string
		want   bool
	}{
		{"exec sleep 1000", false},
		{"trap : TERM; while :; do sleep 0.05; done", true},
		{"trap '' TERM; exec sleep 1000", true},
	} {
		p := adopt(t, r, test.script)
		// The shell needs a moment to set its trap or to become sleep; the answer must become right.
		deadline := time.Now().Add(20 * time.Second)
		for {
			got, err := p.Handles(unix.SIGTERM)
			if err != nil {
				t.Fatal(err)
			}
			if got == test.want {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: handles SIGTERM: %t", test.script, got)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if got, err := p.Handles(unix.SIGKILL); err != nil || got {
			t.Errorf("%s: handles SIGKILL: %t, %v", test.script, got, err)
		}
		if err := p.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if _, err := p.Handles(unix.SIGTERM); err == nil {
			t.Error("masks of a process that is gone")
		}
	}
}

// Many children of both kinds exit at the same time, while sweeps run all along: none may lose its status.
func TestNoStatusIsLost(t *testing.T) {
	const workers, rounds = 8, 40
	r := testReaper(t)
	stop := make(chan struct{})
	var sweeper, wg sync.WaitGroup
	sweeper.Go(func() {
		// A clock that runs away, so that nothing but claims and holds protects the children.
		for now := time.Now(); ; now = now.Add(time.Hour) {
			select {
			case <-stop:
				return
			default:
				r.sweep(now)
			}
		}
	})
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				want := (w*rounds + i) % 250
				script := "exit " + strconv.Itoa(want)
				if i%2 == 0 {
					c, err := r.Start(exec.Command("sh", "-c", script))
					if err != nil {
						t.Error(err)
						return
					}
					if got, err := c.Wait(); err != nil || got != want {
						t.Errorf("started: status %d, %v; want %d", got, err, want)
					}
					continue
				}
				p := adopt(t, r, script)
				<-p.Done()
				if got, err := p.Status(); err != nil || got != want {
					t.Errorf("adopted: status %d, %v; want %d", got, err, want)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	sweeper.Wait()
	if len(r.started)+len(r.adopted)+r.holds != 0 {
		t.Errorf("left over: %d started, %d adopted, %d holds", len(r.started), len(r.adopted), r.holds)
	}
}

// A zombie that somebody is going to wait for stays, however long that takes.
func TestSweepSparesClaims(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	r := newReaper(nil) // sweeps only when told
	now := time.Now()
	sweepTwice := func() {
		r.sweep(now)
		now = now.Add(time.Hour)
		r.sweep(now)
	}
	zombie := func(pid int) { // waits for the exit and leaves the zombie
		t.Helper()
		for {
			err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			if err == nil {
				return
			}
			if !errors.Is(err, unix.EINTR) {
				t.Fatal(err)
			}
		}
	}
	started := orphan(t, r, "exit 1")
	zombie(started)
	r.claim(started)
	sweepTwice()
	if err := isChild(started); err != nil {
		t.Errorf("a started child was swept up: %v", err)
	}
	r.unclaim(started)
	sweepTwice()
	if err := isChild(started); err == nil {
		t.Error("an orphan was not swept up")
	}

	// A descriptor that never tells of the exit stands for a waiter that is slow.
	r.openPidfd = func(int) (int, error) { return unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK) }
	adopted := adopt(t, r, "sleep 0.2")
	zombie(adopted.PID())
	sweepTwice()
	if err := isChild(adopted.PID()); err != nil {
		t.Errorf("an adopted process was swept up: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, done, err := reap(adopted.PID()); err != nil || !done {
		t.Errorf("the status is lost: %t, %v", done, err)
	}
}

// Waiting for many processes must not take a thread for each.
func TestWaitingTakesNoThreads(t *testing.T) {
	const n = 60
	r := testReaper(t)
	if fd, err := unix.PidfdOpen(os.Getpid(), 0); err != nil {
		t.Skipf("this kernel has no pidfd: %v", err)
	} else {
		_ = unix.Close(fd)
	}
	before := pprof.Lookup("threadcreate").Count()
	var all []*Process
	for range n {
		all = append(all, adopt(t, r, "exec sleep 1000"))
	}
	if grown := pprof.Lookup("threadcreate").Count() - before; grown > n/2 {
		t.Errorf("%d more threads for %d processes", grown, n)
	}
	for _, p := range all {
		if err := p.Signal(unix.SIGKILL); err != nil {
			t.Error(err)
		}
		<-p.Done()
	}
}

func TestOrphanIsSwept(t *testing.T) {
	r := testReaper(t)
	pid := orphan(t, r, "exit 9")
	deadline := time.Now().Add(60 * time.Second)
	for isChild(pid) == nil {
		if time.Now().After(deadline) {
			t.Fatal("the orphan was not swept up")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func ExampleReaper() {
	r, err := New(nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = r.Close() }()
	c, err := r.Start(exec.Command("sh", "-c", "exit 42"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.Wait())
	// Output: 42 <nil>
}
