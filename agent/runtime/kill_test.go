// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
)

// tripwire stands in front of crun and tells the test the pid of those commands that it wants to know: it has a FIFO by
// their name. It becomes crun, so that a signal to that pid hits crun as the agent has started it. With a file named
// stop it stands still first.
const tripwire = `#!%[1]s sh
for a; do
	case $a in
	create|start|exec|delete|update) 
		if [ -p "%[2]s/$a" ]; then
			echo $$ > "%[2]s/$a"
			[ ! -e "%[2]s/stop" ] || kill -STOP $$
		fi
		break;;
	esac
done
exec "%[3]s" "$@"
`

// saboteur sends signals to crun at work.
type saboteur struct {
	*pod
	dir string
	// usual says how long each command takes on this machine.
	usual map[string]time.Duration
}

func newSaboteur(t *testing.T) *saboteur {
	t.Helper()
	s := &saboteur{dir: t.TempDir(), usual: make(map[string]time.Duration)}
	command := filepath.Join(s.dir, "crun")
	script := fmt.Sprintf(tripwire, os.Getenv(busyboxEnv), s.dir, crunPath(t))
	if err := os.WriteFile(command, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	s.pod = newPodWith(t, func(p *pod, c *agent.Config) {
		p.runtime, p.reaper = crunWith(t, command, 0)
		c.Runtime, c.Reaper = p.runtime, p.reaper
	})
	s.measure(t)
	return s
}

// measure finds how long commands take.
func (s *saboteur) measure(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	timed := func(command string, f func() error) {
		t.Helper()
		start := time.Now()
		if err := f(); err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		if before, ok := s.usual[command]; ok {
			took = min(took, before)
		}
		s.usual[command] = took
	}
	for range sample(3, 2, 10) {
		timed("create", func() error { return s.CreateContainer(ctx, busybox("c1", "exec sleep 1000")) })
		timed("start", func() error { return s.StartContainer(ctx, "c1") })
		timed("exec", func() error { return s.Exec(ctx, "c1", "e1", shell("exec sleep 1000")) })
		timed("delete", func() error { return s.RemoveContainer(ctx, "c1", 0) })
	}
	t.Logf("usual times %v", s.usual)
}

// during runs f, whose first command of that name gets a signal some time after its start. It reports whether crun was
// still at work then.
func (s *saboteur) during(t *testing.T, command string, delay time.Duration, sig unix.Signal, f func() error) (hit bool, err error) {
	t.Helper()
	name := filepath.Join(s.dir, command)
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	signalled := make(chan bool)
	go func() {
		buf := make([]byte, 32)
		n, _ := fifo.Read(buf)
		_ = os.Remove(name) // for this one command only
		pid, _ := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			signalled <- false
			return
		}
		defer unix.Close(fd)
		time.Sleep(delay) // what is tested is any time
		signalled <- unix.PidfdSendSignal(fd, sig, nil, 0) == nil
	}()
	err = f()
	_ = fifo.Close() // it ends the reader if no such command was run
	hit = <-signalled
	return hit, err
}

// campaign sabotages a command at as many times of its course as points says, and what follows must be in order each time.
func (s *saboteur) campaign(t *testing.T, command string, points int, sig unix.Signal) {
	t.Helper()
	hits, failed := 0, 0
	for i := range points {
		delay := s.usual[command] * time.Duration(i) * 5 / 4 / time.Duration(points)
		hit, err := s.sabotage(t, command, delay, sig)
		if hit {
			hits++
		}
		if err != nil {
			failed++
			if testing.Verbose() && failed <= 3 {
				t.Logf("after %v: %v", delay, err)
			}
		}
		s.wantNothing(t, fmt.Sprintf("%s after %v (%v)", command, delay, err))
		if t.Failed() {
			return
		}
	}
	t.Logf("campaign: %d times signal %d to crun %s, %d while it worked, %d reported as failures", points, int(sig), command, hits, failed)
	if hits == 0 {
		t.Errorf("crun %s was never hit", command)
	}
}

// sabotage runs one command and cleans up behind it.
func (s *saboteur) sabotage(t *testing.T, command string, delay time.Duration, sig unix.Signal) (hit bool, err error) {
	t.Helper()
	ctx := t.Context()
	if command != "create" {
		if err := s.CreateContainer(ctx, busybox("c1", "exec sleep 1000")); err != nil {
			t.Fatal(err)
		}
	}
	if command == "exec" || command == "delete" {
		if err := s.StartContainer(ctx, "c1"); err != nil {
			t.Fatal(err)
		}
	}
	limit := s.runtime.config.Timeout
	if sig == unix.SIGSTOP { // this command runs into its time limit
		s.runtime.config.Timeout = 300*time.Millisecond + 2*s.usual[command]
	}
	hit, err = s.during(t, command, delay, sig, func() error {
		switch command {
		case "create":
			return s.CreateContainer(ctx, busybox("c1", "exec sleep 1000"))
		case "start":
			return s.StartContainer(ctx, "c1")
		case "exec":
			return s.Exec(ctx, "c1", "e1", shell("exec sleep 1000"))
		}
		return s.RemoveContainer(ctx, "c1", 0)
	})
	s.runtime.config.Timeout = limit
	if command == "exec" {
		s.checkExec(t, err)
	}
	rerr := s.RemoveContainer(ctx, "c1", 0)
	if gone := command == "create" && err != nil || command == "delete" && err == nil; gone {
		if !errors.Is(rerr, agent.ErrInvalidContainerID) {
			t.Errorf("%s (%v): the container is still known: %v", command, err, rerr)
		}
	} else if rerr != nil {
		t.Errorf("%s (%v): the container cannot be removed: %v", command, err, rerr)
	}
	return hit, err
}

// checkExec checks that a container works after an exec, and has no process that nobody knows.
func (s *saboteur) checkExec(t *testing.T, err error) {
	t.Helper()
	want := 1
	if err == nil {
		want = 2
	}
	procs := func() int {
		data, err := os.ReadFile(cgroupRoot + "/containers/c1/cgroup.procs")
		if err != nil {
			t.Fatal(err)
		}
		return len(strings.Fields(string(data)))
	}
	eventually(t, fmt.Sprintf("%d processes in the container after an exec (%v)", want, err), func() bool { return procs() == want })
	if got := s.execShell(t, "c1", "e2", "echo works"); got != "works\n" {
		t.Errorf("a further exec says %q", got)
	}
	s.wantStatus(t, "c1", "e2", 0)
	if err == nil {
		if err := s.Signal(t.Context(), "c1", "e1", 9); err != nil {
			t.Error(err)
		}
		s.wantStatus(t, "c1", "e1", 128+9)
	}
}

// wantNothing checks that nothing is left of containers.
func (s *saboteur) wantNothing(t *testing.T, after string) {
	t.Helper()
	for _, path := range []string{filepath.Join(s.pod.dir, "c1"), cgroupRoot + "/containers/c1"} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %s is left: %v", after, path, err)
		}
	}
	for _, dir := range []string{s.runtime.state, s.runtime.exchange} {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("%s: left in %s: %v, %v", after, dir, left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(s.pod.dir+"/c1")) {
		t.Errorf("%s: a mount is left: %v", after, err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		living := living(t)
		if len(living) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: processes are left: %v", after, living)
			for pid := range living {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			break
		}
	}
}

// living returns the children of this program that have not exited, by the first words of their status.
func living(t *testing.T) map[int]string {
	t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[int]string)
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		rest := string(stat[bytes.LastIndexByte(stat, ')')+1:])
		var state string
		var parent int
		if n, _ := fmt.Sscan(rest, &state, &parent); n == 2 && parent == os.Getpid() && state != "Z" && state != "X" {
			wchan, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "wchan"))
			found[pid] = string(stat[:min(40, len(stat))]) + " " + string(wchan)
		}
	}
	return found
}

// crun is killed at any time of any command, or stands still until the agent kills it. The agent then reports an error or
// has succeeded, and nothing is left or stuck.
func TestKilledCrun(t *testing.T) {
	s := newSaboteur(t)
	kills, stops := sample(8, 2, 60), sample(2, 1, 10)
	for _, command := range []string{"create", "start", "exec", "delete"} {
		t.Run(command, func(t *testing.T) {
			s.campaign(t, command, kills, unix.SIGKILL)
			if command == "exec" || !inGuest() { // each takes as long as the time limit
				s.campaign(t, command, stops, unix.SIGSTOP)
			}
		})
	}
	s.run(t, busybox("c1", "echo at last"))
	s.say(t, "c1", "", "at last\n")
	s.wantStatus(t, "c1", "", 0)
}
