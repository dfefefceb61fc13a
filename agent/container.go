// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"

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

// maxUnwaited bounds the further processes of a container that nobody has waited for, running ones and others: each costs the
// agent open files.
const maxUnwaited = 1024

// maxParents bounds the groups, in which those of containers lie, that are remembered to be removed at the end.
const maxParents = 1024

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
	// terminationLog is the shared file in which the container says why it ends; empty if it has none.
	terminationLog string
	// freezer holds a token while the container is being frozen or thawed.
	freezer chan struct{}
	// undo takes back what was made for the container besides what every container has.
	undo undo
	// launches and leftovers belong to Sandbox.exec.
	launches  sync.RWMutex
	leftovers atomic.Bool
	// execFailed says that an exec has ever failed, so that processes may be left until the end.
	execFailed atomic.Bool
	// cancel ends the creation, created is closed once that is through, either way.
	cancel  func()
	created chan struct{}

	mu       sync.Mutex
	state    containerState
	paused   bool
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
		freezer: make(chan struct{}, 1),
		execs:   make(map[string]*process),
	}
}

// reserve takes a container id and has the container join the sandbox's namespaces. From then on Destroy and
// RemoveContainer find the container.
func (s *Sandbox) reserve(c *container, result *oci.Result, sharedPID bool) error {
	cgroup := result.Spec.Linux.CgroupsPath
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refusal(); err != nil {
		return err
	}
	if s.containers[c.id] != nil {
		return fmt.Errorf("container %s: %w", c.id, ErrAlreadyExists)
	}
	for _, other := range s.containers {
		if oci.CgroupsOverlap(cgroup, other.cgroup) {
			return fmt.Errorf("%w: cgroup %s overlaps with %s of container %s", ErrInvalidArgument, cgroup, other.cgroup, other.id)
		}
	}
	pid, err := s.sharedPID(c, sharedPID)
	if err != nil {
		return err
	}
	c.cgroup = cgroup
	if len(s.cgroups) < maxParents {
		s.cgroups[path.Dir(cgroup)] = true
	}
	s.containers[c.id] = c
	result.Join(fdPath(s.ipc), fdPath(s.uts), pid)
	return nil
}

// sharedPID returns the path of the PID namespace that the container joins; empty means one of its own. In a sandbox
// whose containers share one, it is that of the first. The lock is held.
func (s *Sandbox) sharedPID(c *container, asked bool) (string, error) {
	switch {
	case s.pid != nil && (asked || s.sharePID):
		c.sharesPID = true
		return fdPath(s.pid), nil
	case asked && !s.sharePID:
		return "", fmt.Errorf("share the PID namespace of the sandbox: it has no container yet: %w", ErrState)
	case s.sharePID && len(s.containers) > 0:
		return "", fmt.Errorf("share the PID namespace of the sandbox: its first container is still being created: %w", ErrState)
	}
	return "", nil
}

// ociOptions are what the guest has for a container's spec. The lock is held.
func (s *Sandbox) ociOptions(c *container) oci.Options {
	return oci.Options{
		ID: c.id, RunDir: s.cfg.RunDir, Rootfs: c.rootfs, Hostname: s.hostname, Privileged: s.cfg.Privileged,
		Controllers: s.cfg.Controllers, HugePages: s.cfg.HugePages,
	}
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

// beginWork notes an operation that leaves the state alone; busy.Done ends it.
func (c *container) beginWork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.doomed:
		return fmt.Errorf("container %s is being removed: %w", c.id, ErrState)
	case c.state != containerCreated && c.state != containerRunning:
		return fmt.Errorf("container %s is %v: %w", c.id, c.state, ErrState)
	}
	c.busy.Add(1)
	return nil
}

// begin moves the container from one state to another for a start or an exec, which ends with end.
func (c *container) begin(from, to containerState) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.doomed:
		return fmt.Errorf("container %s is being removed: %w", c.id, ErrState)
	case c.paused:
		return fmt.Errorf("container %s is paused: %w", c.id, ErrState)
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
