// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent/oci"
)

type containerState int

const (
	containerCreating containerState = iota
	containerCreated
	containerStarting
	containerRunning // or its init process has exited, see process
	containerFailed  // it could not be started
)

func (s containerState) String() string {
	names := [...]string{"being created", "created", "being started", "running", "failed"}
	return names[s]
}

// maxFinished is how many processes that exited and were waited for are kept per container, so that a further wait
// finds their status. Without a bound, probes that run for months would fill the memory.
const maxFinished = 128

// container is one container of the sandbox. Its lock guards state only and is never held across a call that can
// block.
type container struct {
	id     string
	bundle string
	rootfs string
	cgroup string
	log    *slog.Logger
	// sharesPID says that it runs in the PID namespace of another container.
	sharesPID bool
	// spec is the process of the checked spec, from which further processes take their defaults.
	spec *specs.Process
	// cancel ends the creation, created is closed once that is through, either way.
	cancel  func()
	created chan struct{}

	mu       sync.Mutex
	state    containerState
	init     *process
	execs    map[string]*process // nil value: being started
	finished []string            // exec ids that were waited for, oldest first
	removal  *removal            // nil unless being removed
	doomed   bool                // a removal has begun: nothing is started any more
	busy     sync.WaitGroup      // starts and execs under way; none is added once doomed
}

// removal is an attempt to remove a container.
type removal struct {
	done chan struct{}
	err  error
}

func (s *Sandbox) newContainer(id string, cancel func()) *container {
	bundle := filepath.Join(s.cfg.RunDir, id)
	return &container{
		id:      id,
		bundle:  bundle,
		rootfs:  filepath.Join(bundle, "rootfs"),
		log:     s.cfg.Log.With("container", id),
		cancel:  cancel,
		created: make(chan struct{}),
		execs:   make(map[string]*process),
	}
}

// reserve takes a container id and returns the container's namespaces. From then on Destroy and RemoveContainer find
// the container.
func (s *Sandbox) reserve(c *container, cgroup string, sharedPID bool) ([]specs.LinuxNamespace, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refusal(); err != nil {
		return nil, err
	}
	if s.containers[c.id] != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, ErrAlreadyExists)
	}
	for _, other := range s.containers {
		if oci.CgroupsOverlap(cgroup, other.cgroup) {
			return nil, fmt.Errorf("%w: cgroup %s overlaps with %s of container %s", ErrInvalidArgument, cgroup, other.cgroup, other.id)
		}
	}
	o := oci.Options{IPC: fdPath(s.ipc), UTS: fdPath(s.uts)}
	if sharedPID {
		if s.pid == nil {
			return nil, fmt.Errorf("share the PID namespace of the sandbox: it has no container yet: %w", ErrState)
		}
		o.PID, c.sharesPID = fdPath(s.pid), true
	}
	c.cgroup = cgroup
	s.containers[c.id] = c
	return oci.Namespaces(o), nil
}

// fdPath is a path by which a child of the agent reaches what the agent holds open.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// container finds a container; one that is still being created is not there yet.
func (s *Sandbox) container(id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil {
		return nil, fmt.Errorf("%w: %.140q", ErrInvalidContainerID, id)
	}
	return c, nil
}

// process finds a process of a container. The init process goes by the empty exec id and by the container's.
func (s *Sandbox) process(containerID, execID string) (*container, *process, error) {
	c, err := s.container(containerID)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[execID]
	if execID == "" || execID == c.id {
		p = c.init
	}
	if p == nil {
		return nil, nil, fmt.Errorf("%w: %.140q of container %s", ErrProcessNotFound, execID, c.id)
	}
	return c, p, nil
}

// begin moves the container from one state to another for a start or an exec, which ends with end.
func (c *container) begin(from, to containerState) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.doomed:
		return fmt.Errorf("container %s is being removed: %w", c.id, ErrState)
	case c.state != from:
		return fmt.Errorf("container %s is %v: %w", c.id, c.state, ErrState)
	}
	c.state = to
	c.busy.Add(1)
	return nil
}

func (c *container) end(to containerState) {
	c.mu.Lock()
	c.state = to
	c.mu.Unlock()
	c.busy.Done()
}

// processes returns every process that has been started.
func (c *container) processes() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*process
	if c.init != nil {
		all = append(all, c.init)
	}
	for _, p := range c.execs {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// close ends everything that waits for the container's processes.
func (c *container) close() {
	for _, p := range c.processes() {
		p.close()
	}
}
