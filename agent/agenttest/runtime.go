// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agenttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
)

// Runtime runs a container's processes as plain processes of the test host, each in a process group of its own: no
// namespaces, no root file system, no capabilities. They are children of the test, which a proc.Reaper can adopt.
type Runtime struct {
	// Hook is called before each operation.
	Hook Hook

	mu         sync.Mutex
	containers map[string]*container
}

type container struct {
	gate    *os.File // closing it lets the init process go
	started bool
	pids    []int
}

// gated waits until its file descriptor 3 is closed at the other end and becomes the process in its arguments.
const gated = `read -r _ <&3; exec 3<&-; exec "$@"`

// Create implements agent.Runtime. The bundle must hold a config.json and the root file system that it names.
func (r *Runtime) Create(_ context.Context, id, bundle string, stdio agent.Stdio) (int, error) {
	if err := r.Hook.call("Create", id); err != nil {
		return 0, err
	}
	spec, err := readBundle(bundle)
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers[id] != nil {
		return 0, fmt.Errorf("container %s exists", id)
	}
	wait, gate, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer wait.Close()
	args := append([]string{"sh", "-c", gated, "sh"}, spec.Process.Args...)
	pid, err := start(args, spec.Process.Env, stdio, wait)
	if err != nil {
		_ = gate.Close()
		return 0, err
	}
	if r.containers == nil {
		r.containers = make(map[string]*container)
	}
	r.containers[id] = &container{gate: gate, pids: []int{pid}}
	return pid, nil
}

func readBundle(bundle string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, err
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 || spec.Root == nil {
		return nil, errors.New("config.json has no process or no root")
	}
	root, err := os.Stat(spec.Root.Path)
	if err != nil {
		return nil, err
	}
	if !root.IsDir() {
		return nil, fmt.Errorf("root %s is not a folder", spec.Root.Path)
	}
	return &spec, nil
}

func start(args, env []string, stdio agent.Stdio, extra ...*os.File) (int, error) {
	var fds []uintptr
	for _, f := range append([]*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr}, extra...) {
		fds = append(fds, f.Fd())
	}
	path, err := lookPath(args[0])
	if err != nil {
		return 0, err
	}
	return syscall.ForkExec(path, args, &syscall.ProcAttr{
		Env:   append([]string{"PATH=/usr/bin:/bin"}, env...),
		Files: fds,
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
}

func lookPath(name string) (string, error) {
	for _, dir := range []string{"", "/usr/bin", "/bin"} {
		path := filepath.Join(dir, name)
		if filepath.IsAbs(path) && syscall.Access(path, 1) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("executable file %q not found", name)
}

// Start implements agent.Runtime.
func (r *Runtime) Start(_ context.Context, id string) error {
	if err := r.Hook.call("Start", id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil || c.started {
		return fmt.Errorf("container %s is not there or not in created state", id)
	}
	c.started = true
	return c.gate.Close()
}

// Exec implements agent.Runtime.
func (r *Runtime) Exec(_ context.Context, id, _ string, process *specs.Process, stdio agent.Stdio) (int, error) {
	if err := r.Hook.call("Exec", id); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil || !c.started {
		return 0, fmt.Errorf("container %s is not running", id)
	}
	pid, err := start(process.Args, process.Env, stdio)
	if err != nil {
		return 0, err
	}
	c.pids = append(c.pids, pid)
	return pid, nil
}

// Kill implements agent.Runtime.
func (r *Runtime) Kill(_ context.Context, id string, signal int, all bool) error {
	if err := r.Hook.call("Kill", id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return fmt.Errorf("container %s does not exist", id)
	}
	if all {
		c.killAll(syscall.Signal(signal))
		return nil
	}
	return syscall.Kill(c.pids[0], syscall.Signal(signal))
}

// killAll signals the process groups. One that is gone is no error.
func (c *container) killAll(signal syscall.Signal) {
	for _, pid := range c.pids {
		_ = syscall.Kill(-pid, signal)
	}
}

// Delete implements agent.Runtime.
func (r *Runtime) Delete(_ context.Context, id string) error {
	if err := r.Hook.call("Delete", id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return nil
	}
	c.killAll(syscall.SIGKILL)
	if !c.started {
		_ = c.gate.Close()
	}
	delete(r.containers, id)
	return nil
}

// Containers returns the ids of the containers that exist, sorted.
func (r *Runtime) Containers() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.containers))
}
