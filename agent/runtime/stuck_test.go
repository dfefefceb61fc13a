// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/oci"
)

// patience bounds what works while another container is stuck. It is far more than an emulated machine needs, and less
// than the time limits of the agent, by which a stuck call ends.
const patience = 4 * time.Minute

// unhindered makes 60 calls (in the test guest 20) on other containers, none of which may wait for the stuck one.
func unhindered(t *testing.T, p *pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s of a container that is not stuck: %v", what, err)
		}
	}
	must("create", p.CreateContainer(ctx, busybox("other", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done")))
	must("start", p.StartContainer(ctx, "other"))
	if data, err := p.ReadStdout(ctx, "other", "", 100); err != nil || string(data) != "ready\n" {
		t.Fatalf("%q, %v", data, err)
	}
	for i := range sample(8, 1, 50) {
		if p.Containers() < 2 {
			t.Error("a container is missing")
		}
		id := "e" + strconv.Itoa(i) + "x"
		must("exec", p.Exec(ctx, "other", id, shell("cat; exit 7")))
		must("write", p.WriteStdin(ctx, "other", id, []byte("text")))
		must("close of input", p.CloseStdin(ctx, "other", id))
		status, err := p.Wait(ctx, "other", id)
		must("wait", err)
		if status != 7 {
			t.Errorf("status %d", status)
		}
		data, err := p.ReadStdout(ctx, "other", id, 100)
		must("read", err)
		if string(data) != "text" {
			t.Errorf("output %q", data)
		}
		_, err = p.StatsContainer(ctx, "other")
		must("statistics", err)
	}
	if err := p.Exec(ctx, "other", "none", &specs.Process{Args: []string{"/none"}}); err == nil || ctx.Err() != nil {
		t.Errorf("exec of a missing program: %v", err)
	}
	must("pause", p.PauseContainer(ctx, "other"))
	must("resume", p.ResumeContainer(ctx, "other"))
	must("update", p.UpdateContainer(ctx, "other", &specs.LinuxResources{}))
	must("signal", p.Signal(ctx, "other", "", 15))
	status, err := p.Wait(ctx, "other", "")
	must("wait", err)
	if status != 3 {
		t.Errorf("status %d", status)
	}
	must("remove", p.RemoveContainer(ctx, "other", patience))
}

// A group that is frozen behind the agent's back: whatever enters it stands still.
func TestFrozenContainerHindersNobody(t *testing.T) {
	p := newPod(t)
	p.run(t, busybox("stuck", "exec sleep 1000"))
	if err := os.WriteFile(cgroupRoot+"/containers/stuck/cgroup.freeze", []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Exec(t.Context(), "stuck", "e1", shell("echo in vain")) })
	wg.Go(func() { _, _ = p.Wait(t.Context(), "stuck", "") })
	wg.Go(func() { _, _ = p.ReadStdout(t.Context(), "stuck", "", 100) })
	unhindered(t, p)
	if err := p.RemoveContainer(t.Context(), "stuck", patience); err != nil {
		t.Errorf("remove the frozen one: %v", err)
	}
	wg.Wait()
}

func TestPausedContainerHindersNobody(t *testing.T) {
	p := newPod(t)
	p.run(t, busybox("stuck", "exec sleep 1000"))
	if err := p.PauseContainer(t.Context(), "stuck"); err != nil {
		t.Fatal(err)
	}
	unhindered(t, p)
	if err := p.RemoveContainer(t.Context(), "stuck", patience); err != nil {
		t.Errorf("remove the paused one: %v", err)
	}
}

// Output that nobody reads, and input that the container does not.
func TestFullPipesHinderNobody(t *testing.T) {
	p := newPod(t)
	p.run(t, busybox("stuck", "yes; exec sleep 1000"))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.WriteStdin(ctx, "stuck", "", make([]byte, 1<<20)); err == nil {
			t.Error("a container that does not read has taken 1 MiB")
		}
	})
	unhindered(t, p)
	cancel()
	wg.Wait()
	if err := p.RemoveContainer(t.Context(), "stuck", patience); err != nil {
		t.Error(err)
	}
}

// crun stands still in the middle of a command.
func TestStoppedCrunHindersNobody(t *testing.T) {
	s := newSaboteur(t)
	s.runtime.config.Timeout = 2 * patience
	commands := []string{"create", "exec", "start", "delete"}
	for _, command := range commands[:sample(4, 2, 4)] {
		ctx := t.Context()
		if command != "create" {
			if err := s.CreateContainer(ctx, busybox("stuck", "exec sleep 1000")); err != nil {
				t.Fatal(err)
			}
		}
		if command == "exec" || command == "delete" {
			if err := s.StartContainer(ctx, "stuck"); err != nil {
				t.Fatal(err)
			}
		}
		ended := make(chan error)
		pid := s.stop(t, command, func() {
			var err error
			switch command {
			case "create":
				err = s.CreateContainer(ctx, busybox("stuck", "exec sleep 1000"))
			case "start":
				err = s.StartContainer(ctx, "stuck")
			case "exec":
				err = s.Exec(ctx, "stuck", "e1", shell("true"))
			case "delete":
				err = s.RemoveContainer(ctx, "stuck", patience)
			}
			ended <- err
		})
		t.Run(command, func(t *testing.T) { unhindered(t, s.pod) })
		select {
		case err := <-ended:
			t.Errorf("%s was not stuck at all: %v", command, err)
			continue
		default:
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; (err == nil) != (command == "delete") { // a delete is recovered from
			t.Errorf("%s by a runtime that was killed: %v", command, err)
		}
		if command == "start" || command == "exec" {
			if err := s.RemoveContainer(ctx, "stuck", 0); err != nil {
				t.Error(err)
			}
		}
		s.wantNothing(t, command)
	}
}

// stop runs f in the background, whose first crun of that command stands still at its start. It returns crun's pid.
func (s *saboteur) stop(t *testing.T, command string, f func()) (pid int) {
	t.Helper()
	name := filepath.Join(s.dir, command)
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	if err := os.WriteFile(filepath.Join(s.dir, "stop"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	go f()
	buf := make([]byte, 32)
	n, err := fifo.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(buf[:n]))); err != nil {
		t.Fatal(err)
	}
	// In this order, for it looks for the file only once it has told.
	eventually(t, "crun stands still", func() bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err == nil && strings.HasPrefix(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " T")
	})
	_ = os.Remove(filepath.Join(s.dir, "stop"))
	_ = os.Remove(name)
	return pid
}

// A file system that does not answer, as the source of a container's mount.
func TestHungMountHindersNobody(t *testing.T) {
	p := newPod(t)
	source := filepath.Join(p.dir, oci.SharedDir, "hung")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	hung := mountFUSE(t, source)
	hung.silent.Store(true)
	created := make(chan error)
	go func() { created <- p.CreateContainer(t.Context(), withMount(source)) }()
	<-hung.asked
	if p.Containers() == 0 {
		t.Error("the container that is stuck is not known")
	}
	unhindered(t, p)
	select {
	case err := <-created:
		t.Fatalf("the container was not stuck: %v", err)
	default:
	}
	hung.abort()
	if err := <-created; err == nil {
		t.Error("a container of a mount that failed was created")
	}
}

func withMount(source string) agent.ContainerConfig {
	c := busybox("stuck", "exec sleep 1000")
	c.Spec.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc"},
		{Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		{Destination: "/mnt", Type: "bind", Source: source, Options: []string{"rbind"}},
	}
	return c
}

// A file system that does not answer, within a container: who touches it cannot be killed, and so not be removed.
func TestHungProcessHindersNobody(t *testing.T) {
	p := newPod(t)
	source := filepath.Join(p.dir, oci.SharedDir, "hung")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	hung := mountFUSE(t, source)
	p.run(t, withMount(source))
	hung.silent.Store(true)
	if err := p.Exec(t.Context(), "stuck", "e1", shell("ls -l /mnt")); err != nil {
		t.Fatal(err)
	}
	<-hung.asked
	if err := p.Signal(t.Context(), "stuck", "e1", 9); err != nil {
		t.Error(err)
	}
	if err := p.RemoveContainer(t.Context(), "stuck", time.Second); err == nil {
		t.Error("a container that cannot die was removed")
	}
	removed := make(chan error)
	go func() { removed <- p.RemoveContainer(t.Context(), "stuck", patience) }()
	unhindered(t, p)
	select {
	case err := <-removed:
		t.Fatalf("the container was not stuck: %v", err)
	default:
	}
	hung.abort()
	if err := <-removed; err != nil {
		t.Errorf("remove it once it can die: %v", err)
	}
}
