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
	"golang.org/x/sys/unix"

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
	// resources are what Update has set.
	resources *specs.LinuxResources
}

// gated waits until its file descriptor 3 is closed at the other end and becomes the process in its arguments.
const gated = `read -r _ <&3; exec 3<&-; exec "$@"`

// Create implements agent.Runtime. The bundle must hold a config.json and the root file system that it names.
func (r *Runtime) Create(_ context.Context, id, bundle string, stdio agent.Stdio) (agent.Started, error) {
	none := agent.Started{}
	if err := r.Hook.call("Create", id); err != nil {
		return none, err
	}
	spec, err := readBundle(bundle)
	if err != nil {
		return none, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers[id] != nil {
		return none, fmt.Errorf("container %s exists", id)
	}
	wait, gate, err := os.Pipe()
	if err != nil {
		return none, err
	}
	defer wait.Close()
	args := append([]string{"sh", "-c", gated, "sh"}, spec.Process.Args...)
	started, err := start(args, spec.Process.Env, stdio, wait)
	if err != nil {
		_ = gate.Close()
		return none, err
	}
	if r.containers == nil {
		r.containers = make(map[string]*container)
	}
	r.containers[id] = &container{gate: gate, pids: []int{started.PID}}
	return started, nil
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

func start(args, env []string, stdio agent.Stdio, extra ...*os.File) (agent.Started, error) {
	none := agent.Started{}
	path, err := lookPath(args[0])
	if err != nil {
		return none, err
	}
	attr := &syscall.ProcAttr{Env: append([]string{"PATH=/usr/bin:/bin"}, env...), Sys: &syscall.SysProcAttr{Setpgid: true}}
	var master *os.File
	if stdio.Terminal {
		var slave *os.File
		if master, slave, err = OpenTerminal(); err != nil {
			return none, err
		}
		defer slave.Close()
		stdio = agent.Stdio{Stdin: slave, Stdout: slave, Stderr: slave}
		attr.Sys = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
	for _, f := range append([]*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr}, extra...) {
		attr.Files = append(attr.Files, f.Fd())
	}
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		return agent.Started{Console: master}, err
	}
	return agent.Started{PID: pid, Console: master}, nil
}

// OpenTerminal makes a pseudo-terminal, see pty(7). Its master is in non-blocking mode.
func OpenTerminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	master = os.NewFile(uintptr(fd), "terminal")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
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
func (r *Runtime) Exec(_ context.Context, id string, process *specs.Process, stdio agent.Stdio) (agent.Started, error) {
	none := agent.Started{}
	if err := r.Hook.call("Exec", id); err != nil {
		return none, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil || !c.started {
		return none, fmt.Errorf("container %s is not running", id)
	}
	started, err := start(process.Args, process.Env, stdio)
	if err == nil {
		c.pids = append(c.pids, started.PID)
	}
	return started, err
}

// Update implements agent.Runtime. It changes nothing and keeps account.
func (r *Runtime) Update(_ context.Context, id string, resources *specs.LinuxResources) error {
	if err := r.Hook.call("Update", id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return fmt.Errorf("container %s does not exist", id)
	}
	c.resources = resources
	return nil
}

// Resources returns the limits that Update has given to a container.
func (r *Runtime) Resources(id string) *specs.LinuxResources {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.containers[id]; c != nil {
		return c.resources
	}
	return nil
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
