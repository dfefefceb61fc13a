// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/agenttest"
	"github.com/cloister-cc/cloister/agent/oci"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/rpc"
	"github.com/cloister-cc/cloister/storage/share"
	"github.com/cloister-cc/cloister/storage/volume"
)

// answerTime is how long any request of a fuzz input may take that does not wait for something to happen.
const answerTime = 20 * time.Second

// bed is an agent whose files and volumes are real, as far as they need no privileges, and that starts nothing but cat.
type bed struct {
	t       *testing.T
	dir     string // holds run, and beside it what must not change
	run     string
	sandbox *agent.Sandbox
	images  agenttest.Images
	kernel  agenttest.Kernel
	runtime catRuntime
	dirs    *share.Dir
	server  *rpc.Server
	served  chan error
	address string
	client  *ttrpc.Client
}

// outside are the files next to the run folder, in whose place a request might get something else.
func outside(dir string) error {
	err := os.MkdirAll(filepath.Join(dir, "sentinel", "d"), 0o755)
	for _, name := range []string{"resolv.conf", "sentinel/a", "sentinel/d/f"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte("of the guest"), 0o640))
	}
	return errors.Join(err, os.Symlink("d/f", filepath.Join(dir, "sentinel", "l")))
}

// newBed makes a server in a folder of its own. denied gives it a gate that denies, and no sandbox behind: any request
// that came through would panic.
func newBed(t *testing.T, dir string, reaper *proc.Reaper, denied bool) *bed {
	t.Helper()
	b := &bed{t: t, dir: dir, run: filepath.Join(dir, "run"), served: make(chan error, 1)}
	b.runtime.bed = b
	config := rpc.Config{Machine: agenttest.Machine{}, Gate: rpc.AllowAll, Version: "1"}
	b.sandbox = b.newSandbox(reaper)
	config.Sandbox = b.sandbox
	if denied {
		config.Gate, config.Sandbox, config.Machine = rpc.DenyAll, struct{ rpc.Sandbox }{}, struct{ rpc.Machine }{}
	}
	var err error
	if b.server, err = rpc.NewServer(config); err != nil {
		t.Fatal(err)
	}
	b.address = filepath.Join(dir, "agent.sock")
	l, err := rpc.Listen("unix://" + b.address)
	if err != nil {
		t.Fatal(err)
	}
	go func() { b.served <- b.server.Serve(context.Background(), l) }()
	conn, err := dialUnix(b.address)
	if err != nil {
		t.Fatal(err)
	}
	b.client = ttrpc.NewClient(conn)
	return b
}

func (b *bed) newSandbox(reaper *proc.Reaper) *agent.Sandbox {
	b.t.Helper()
	var err error
	root := filepath.Join(b.run, oci.SharedDir)
	if b.dirs, err = share.Open(root, 1<<20); err != nil {
		b.t.Fatal(err)
	}
	volumes, err := volume.New(volume.Config{
		RunDir: b.run, SysDir: filepath.Join(b.dir, "sentinel"),
		Mount:   func(_, target, _ string, _ []string) error { return b.inside(target) },
		Unmount: func(target string) error { return b.inside(filepath.Dir(target)) },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.images.Hook = func(_, what string) error {
		if strings.HasPrefix(what, "fail") { // containers of such an id fail half made
			return errors.New("no such image")
		}
		return nil
	}
	b.kernel.Hook = func(operation, target string) error {
		if operation == "Mount" && target != filepath.Join(b.dir, "resolv.conf") {
			return b.inside(target)
		}
		return nil
	}
	groups := &agenttest.Cgroups{}
	b.runtime.groups = groups
	s, err := agent.NewSandbox(agent.Config{
		Images: &b.images, Runtime: &b.runtime, Kernel: &b.kernel, Network: &agenttest.Network{}, Reaper: reaper,
		Cgroups: groups, OOM: groups.OOM(), Share: shared{b.dirs, share.NewStale(root, share.KernelMounts())}, Volumes: volumesOf{volumes},
		RunDir: b.run, ResolvConf: filepath.Join(b.dir, "resolv.conf"),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// inside reports a target of a mount that does not lie in the run folder.
func (b *bed) inside(target string) error {
	real, err := filepath.EvalSymlinks(target)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(real, b.run+"/") {
		b.t.Errorf("mount at %s, which is %s", target, real)
	}
	return nil
}

// close ends the agent and checks that nothing is left.
func (b *bed) close() {
	if err := b.sandbox.Destroy(context.Background()); err != nil {
		b.t.Errorf("Destroy: %v", err)
	}
	if err := errors.Join(b.server.Close(), <-b.served); err != nil {
		b.t.Errorf("close server: %v", err)
	}
	_ = b.client.Close() // the server has closed the connection
	if err := b.dirs.Close(); err != nil {
		b.t.Error(err)
	}
	if m := b.images.Mounted(); len(m) != 0 {
		b.t.Errorf("still mounted: %v", m)
	}
	if m := b.kernel.Mounts(); len(m) != 0 {
		b.t.Errorf("still mounted: %v", m)
	}
	if c := b.runtime.left(); len(c) != 0 {
		b.t.Errorf("the runtime still has %v", c)
	}
	entries, err := os.ReadDir(b.run)
	if err != nil {
		b.t.Error(err)
	}
	for _, e := range entries {
		if e.Name() != "sandbox" && e.Name() != "shared" {
			b.t.Errorf("%s is left in the run folder", e.Name())
		}
	}
}

// picture describes all files of a folder but those in run and the agent's socket.
func picture(dir string) (string, error) {
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch rel, _ := filepath.Rel(dir, path); {
		case err != nil || rel == "." || rel == "agent.sock":
			return err
		case rel == "run":
			return fs.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		content := ""
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(data)
		}
		fmt.Fprintln(&all, path, st.Ino, st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim, content)
		return nil
	})
	return all.String(), err
}

// settled waits until there are no more goroutines than before.
func settled(t *testing.T, before int) {
	t.Helper()
	deadline := time.Now().Add(answerTime)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// catRuntime runs cat whatever is asked for, from the creation of a container on.
type catRuntime struct {
	bed    *bed
	groups *agenttest.Cgroups

	mu         sync.Mutex
	containers map[string]*specs.Spec
}

// Create implements agent.Runtime. It checks what a runtime would do with the spec outside of the container.
func (r *catRuntime) Create(_ context.Context, id, bundle string, stdio agent.Stdio) (agent.Started, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return agent.Started{}, err
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(data, spec); err != nil {
		return agent.Started{}, err
	}
	r.check(spec)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers[id] != nil {
		r.bed.t.Errorf("container %s is created twice", id)
	}
	if spec.Process.Args[0] == "fail" {
		return agent.Started{}, errors.New("fail")
	}
	if r.containers == nil {
		r.containers = make(map[string]*specs.Spec)
	}
	r.containers[id] = spec
	return cat(stdio)
}

func (r *catRuntime) check(spec *specs.Spec) {
	t := r.bed.t
	if spec.Hooks != nil || spec.Process == nil || len(spec.Process.Args) == 0 || spec.Linux == nil {
		t.Errorf("hooks, or no process to run: %+v", spec)
	}
	if spec.Root == nil || !strings.HasPrefix(filepath.Clean(spec.Root.Path), r.bed.run+"/") {
		t.Errorf("root %+v", spec.Root)
	}
	for _, m := range spec.Mounts {
		bind := m.Type == "bind"
		for _, o := range m.Options {
			bind = bind || o == "bind" || o == "rbind"
		}
		if bind && !strings.HasPrefix(filepath.Clean(m.Source), r.bed.run+"/") {
			t.Errorf("bind mount of %q", m.Source)
		}
	}
}

// Start implements agent.Runtime.
func (r *catRuntime) Start(_ context.Context, id string) error { return r.known(id) }

// Update implements agent.Runtime.
func (r *catRuntime) Update(_ context.Context, id string, _ *specs.LinuxResources) error {
	return r.known(id)
}

// Exec implements agent.Runtime. The arguments oom and fail stand for what may happen.
func (r *catRuntime) Exec(_ context.Context, id string, p *specs.Process, stdio agent.Stdio) (agent.Started, error) {
	if err := r.known(id); err != nil {
		return agent.Started{}, err
	}
	switch p.Args[0] {
	case "fail":
		return agent.Started{}, errors.New("executable file not found")
	case "oom":
		r.mu.Lock()
		group := r.containers[id].Linux.CgroupsPath
		r.mu.Unlock()
		r.groups.OOM().Report(group)
	}
	return cat(stdio)
}

// Delete implements agent.Runtime.
func (r *catRuntime) Delete(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, id)
	return nil
}

func (r *catRuntime) known(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers[id] == nil {
		return fmt.Errorf("container %q does not exist", id)
	}
	return nil
}

func (r *catRuntime) left() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for id := range r.containers {
		ids = append(ids, id)
	}
	return ids
}

func cat(stdio agent.Stdio) (agent.Started, error) {
	attr := &syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{Setsid: true}}
	var master *os.File
	if stdio.Terminal {
		var slave *os.File
		var err error
		if master, slave, err = agenttest.OpenTerminal(); err != nil {
			return agent.Started{}, err
		}
		defer slave.Close()
		stdio = agent.Stdio{Stdin: slave, Stdout: slave, Stderr: slave}
		attr.Sys.Setctty = true
	}
	for _, f := range []*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr} {
		attr.Files = append(attr.Files, f.Fd())
	}
	pid, err := syscall.ForkExec("/bin/cat", []string{"cat"}, attr)
	return agent.Started{PID: pid, Console: master}, err
}
