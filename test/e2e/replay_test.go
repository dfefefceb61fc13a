// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/internal/testbed"
	"github.com/cloister-cc/cloister/test/replay"
	"github.com/cloister-cc/cloister/test/story"
)

// podHostname is what the sequences expect a pod to be called.
const podHostname = "replay-pod"

// sequences returns what runs in a place: first those that leave the sandbox alone, and then those that end it.
func sequences(t *testing.T, where string) (l *replay.Library, all, last []*replay.Sequence) {
	t.Helper()
	l, loaded, err := replay.Load()
	must(t, err)
	for _, s := range loaded {
		switch {
		case s.Where[where] == "":
		case s.Ends:
			last = append(last, s)
		default:
			all = append(all, s)
		}
	}
	if len(all) == 0 || len(last) == 0 {
		t.Fatalf("%d sequences and %d that end the sandbox", len(all), len(last))
	}
	return l, all, last
}

// containerVars are those of one sequence.
func containerVars(id string) map[string]string {
	return map[string]string{"cid": id, "exec": uuid.NewString(), "exec2": uuid.NewString()}
}

func newID() string { return "replay-" + strings.ToLower(rand.Text()[:10]) }

// The shim's sequences against the agent as init of a guest: all in one sandbox, and at the end the guest powers off.
func TestReplayGuest(t *testing.T) {
	t.Parallel()
	w := need(t)
	l, all, last := sequences(t, replay.Guest)
	if len(last) != 1 {
		t.Fatalf("%d sequences end the guest, want 1", len(last))
	}
	ref, err := w.PushImage(t.Context(), w.Registry, story.Image{Name: "replay"})
	must(t, err)
	dir, err := w.BuildGuest(t.Context(), "replay", nil)
	must(t, err)
	vm := w.boot(t, dir, nil)
	c, _ := connect(t, vm)
	pod, err := l.Sandbox("pod")
	must(t, err)
	sid := newID()
	r := replay.NewRunner(context.WithoutCancel(t.Context()), c, replay.Guest, map[string]string{"sid": sid, "image": ref, "hostname": podHostname})
	defer r.Close()
	must(t, r.Run(t.Context(), pod.Begin, nil))
	for _, s := range append(all, last...) {
		t.Run(s.Name, func(t *testing.T) { must(t, r.Run(t.Context(), s, containerVars(sid+"-"+s.Name))) })
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	must(t, vm.Wait(ctx))
	if !strings.Contains(vm.Console(), "sandbox is destroyed, powering off") {
		t.Error("the console does not say that the sandbox is destroyed")
	}
}

// The shim's sequences against the agent as a process of the build host, a new one for each.
func TestReplayProcess(t *testing.T) {
	t.Parallel()
	h := needHost(t)
	l, all, last := sequences(t, replay.Process)
	for _, s := range append(all, last...) {
		t.Run(s.Name, func(t *testing.T) {
			sandbox, err := l.Sandbox(s.Sandbox)
			must(t, err)
			a := h.start(t)
			sid := newID()
			cid := sid // `ctr run`: they are the same
			if s.Sandbox == "pod" {
				cid = newID()
			}
			r := replay.NewRunner(t.Context(), a.connect(t), replay.Process, map[string]string{"sid": sid, "image": h.image, "hostname": podHostname})
			defer r.Close()
			must(t, r.Run(t.Context(), sandbox.Begin, nil))
			must(t, r.Run(t.Context(), s, containerVars(cid)))
			if !s.Ends {
				must(t, r.Run(t.Context(), sandbox.End, nil))
			}
			a.wantExit(t)
			noCgroup(t, sid)
		})
	}
}

// host is what the agent needs as a process of this machine.
type host struct {
	agent, path, image string
}

// needHost returns it, if the guest's architecture is that of this machine: with the other one, the test bed need not have
// been set up for this machine, and then the test is skipped.
func needHost(t *testing.T) *host {
	t.Helper()
	w := need(t)
	bed := w.Bed
	if w.Arch != runtime.GOARCH {
		var err error
		bed, err = testbed.Load(os.Getenv("CLOISTER_CACHE"), runtime.GOARCH)
		if errors.Is(err, fs.ErrNotExist) {
			t.Skipf("runs with ARCH=%s: %v", runtime.GOARCH, err)
		}
		must(t, err)
	}
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_QEMU") == "1" {
			t.Fatal("REQUIRE_QEMU=1, but the agent as a process needs root")
		}
		t.Skip("the agent as a process needs root")
	}
	lab := &story.Lab{Arch: runtime.GOARCH, Dir: filepath.Join(w.Dir, "host"), Bed: bed, Registry: w.Registry}
	must(t, os.Mkdir(lab.Dir, 0o700))
	ref, err := lab.PushImage(t.Context(), lab.Registry, story.Image{Name: "replay-process"})
	must(t, err)
	plain, err := story.StartPlainRegistry(t.Context(), bed.Registry, lab.Dir, lab.Registry.Root)
	must(t, err)
	t.Cleanup(func() { must(t, plain.Stop()) })
	h := &host{
		agent: w.Agent, path: filepath.Dir(bed.Crun),
		image: plain.Host(story.LoopbackHost) + strings.TrimPrefix(ref, w.Registry.Host(story.GuestHost)),
	}
	if w.Arch != runtime.GOARCH {
		h.agent = filepath.Join(lab.Dir, "cloister-agent")
		must(t, story.GoBuild(t.Context(), runtime.GOARCH, h.agent, "github.com/cloister-cc/cloister/cmd/cloister-agent"))
	}
	return h
}

// agentProcess is a running one.
type agentProcess struct {
	address string
	cmd     *exec.Cmd
	done    chan struct{} // closed at its end
	log     lockedBuffer
}

// start runs an agent, which ends with the test.
func (h *host) start(t *testing.T) *agentProcess {
	t.Helper()
	a := &agentProcess{address: "unix://" + filepath.Join(t.TempDir(), "agent.sock"), done: make(chan struct{})}
	a.cmd = exec.Command(h.agent)
	a.cmd.Env = []string{"PATH=" + h.path, "KATA_AGENT_SERVER_ADDR=" + a.address, "KATA_AGENT_LOG_LEVEL=debug"}
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	must(t, a.cmd.Start())
	go func() {
		defer close(a.done)
		_ = a.cmd.Wait() // how it ended is in ProcessState
	}()
	t.Cleanup(func() {
		select {
		case <-a.done:
		default: // it destroys its sandbox
			_ = a.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-a.done:
			case <-time.After(time.Minute):
				t.Error("the agent does not end")
				_ = a.cmd.Process.Kill()
				<-a.done
			}
		}
		if t.Failed() {
			t.Logf("agent:\n%s", a.log.String())
		}
	})
	return a
}

func (a *agentProcess) connect(t *testing.T) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() { // an agent that has ended will never be ready
		select {
		case <-a.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	c, err := client.DialReady(ctx, a.address)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// wantExit waits for the end of the agent, whose sandbox has been destroyed.
func (a *agentProcess) wantExit(t *testing.T) {
	t.Helper()
	select {
	case <-a.done:
	case <-time.After(time.Minute):
		t.Fatal("DestroySandbox: the agent goes on")
	}
	if code := a.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("DestroySandbox: the agent ends with status %d, want 0", code)
	}
}

// noCgroup reports control groups that a sandbox has left behind, wherever this machine has version 2 mounted.
func noCgroup(t *testing.T, sid string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != "cgroup2" {
			continue
		}
		if _, err := os.Stat(path.Join(fields[1], sid)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want no such group", path.Join(fields[1], sid), err)
		}
	}
}

// lockedBuffer is for a writer and a reader at the same time.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
