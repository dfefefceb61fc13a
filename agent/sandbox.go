// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent/netdev"
	"github.com/cloister-cc/cloister/agent/oci"
	"github.com/cloister-cc/cloister/agent/proc"
)

// Config are the parts that a Sandbox works with. Images, Runtime, Kernel and Reaper are required.
type Config struct {
	Images  Images
	Runtime Runtime
	Kernel  Kernel
	// Network is required for UpdateInterface and UpdateRoutes only.
	Network Network
	// Reaper waits for the container processes, whose parent the agent becomes once the runtime has exited.
	Reaper *proc.Reaper
	// Cgroups and OOM are nil on a machine that has no control groups: containers then cannot be paused, and have no
	// statistics.
	Cgroups Cgroups
	OOM     OOM
	// Share holds the files that the host copies into the guest; nil takes none.
	Share Share
	// Volumes mounts the storages that are no image; nil mounts none.
	Volumes Volumes
	// Devices adds the devices that the annotations of a container name; nil adds none.
	Devices func(ctx context.Context, spec *specs.Spec, annotations map[string]string) error
	// Hooks finds the guest's hooks in the folder that the host names; nil finds none.
	Hooks func(dir string) (*specs.Hooks, error)
	// Privileged allows containers what reaches out of them into the guest.
	Privileged bool
	// Controllers are the cgroup controllers that the machine has; nil means all.
	Controllers []string
	// HugePages are the sizes of huge pages that the machine has, in the form "2MB"; nil means all.
	HugePages []string
	// PipeSize is that of the pipes of containers' standard streams, in bytes; 0 means the kernel's default.
	PipeSize int
	// OpenSecret returns what the sealed secret in a variable's value stands for; without it, sealed values are refused.
	OpenSecret func(ctx context.Context, text string) (string, error)
	// Log may be nil.
	Log *slog.Logger
	// RunDir holds bundles and the files of the sandbox; empty means DefaultRunDir.
	RunDir string
	// ResolvConf is the file that the sandbox's resolv.conf is bind-mounted over; empty means /etc/resolv.conf.
	ResolvConf string
}

// DefaultRunDir is where the Kata shim expects bundles and shared files in the guest.
const DefaultRunDir = "/run/kata-containers"

const (
	// maxResolvConf bounds the resolv.conf of a sandbox, in bytes.
	maxResolvConf = 64 << 10
	// removeTimeout bounds the removal of a container for which no timeout was given.
	removeTimeout = 60 * time.Second
)

// An id becomes a name in RunDir, so it must not be one that RunDir has anyway.
var idPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$`)

func checkID(id string) error {
	if !idPattern.MatchString(id) || id == "sandbox" || id == "shared" {
		return fmt.Errorf("%w: %.140q", ErrInvalidContainerID, id)
	}
	return nil
}

type sandboxState int

const (
	sandboxNew sandboxState = iota
	sandboxCreating
	sandboxRunning
	sandboxDestroyed // or about to be
)

// Sandbox is a pod: the containers that share this guest. Its methods may be called concurrently.
type Sandbox struct {
	cfg  Config
	done chan struct{} // closed when Destroy is through

	mu         sync.Mutex
	state      sandboxState
	settled    chan struct{} // closed when Create is through
	tainted    error
	containers map[string]*container
	teardown   undo
	ipc, uts   *os.File // namespaces of the sandbox
	pid        *os.File // PID namespace of its first container, nil before
	hostname   string
	hooks      *specs.Hooks
	volumes    []string        // mount points of the sandbox's storages
	sharePID   bool            // its containers share the PID namespace of the first
	cgroups    map[string]bool // groups in which those of containers lie
	destroyErr error

	oom oomEvents
}

// NewSandbox returns a sandbox that Create brings to life.
func NewSandbox(c Config) (*Sandbox, error) {
	if c.Images == nil || c.Runtime == nil || c.Kernel == nil || c.Reaper == nil {
		return nil, errors.New("new sandbox: Images, Runtime, Kernel and Reaper are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.RunDir == "" {
		c.RunDir = DefaultRunDir
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	return &Sandbox{
		cfg:        c,
		done:       make(chan struct{}),
		settled:    make(chan struct{}),
		containers: make(map[string]*container),
		cgroups:    make(map[string]bool),
	}, nil
}

// Create sets the sandbox up: folders, name resolution, shared memory, and the IPC and UTS namespaces of its
// containers. It can succeed once.
func (s *Sandbox) Create(ctx context.Context, c SandboxConfig) error {
	if err := checkID(c.ID); err != nil {
		return fmt.Errorf("create sandbox: %w", err)
	}
	if err := oci.CheckHostname(c.Hostname); err != nil {
		return fmt.Errorf("create sandbox: %w: %w", ErrInvalidArgument, err)
	}
	shm, volumes, err := shmOptions(c.Storages, filepath.Join(s.sandboxDir(), "shm"))
	if err != nil {
		return fmt.Errorf("create sandbox: %w", err)
	}
	dns, err := resolvConf(c.DNS)
	if err != nil {
		return fmt.Errorf("create sandbox: %w", err)
	}
	s.mu.Lock()
	if s.state == sandboxRunning || s.state == sandboxCreating {
		s.mu.Unlock()
		return fmt.Errorf("create sandbox: it has been created before: %w", ErrState)
	}
	if s.state != sandboxNew || s.tainted != nil {
		err := s.refusal()
		s.mu.Unlock()
		return fmt.Errorf("create sandbox: %w", err)
	}
	s.state = sandboxCreating
	s.mu.Unlock()

	hooks := s.findHooks(c.GuestHookPath)
	var u undo
	ipc, uts, err := s.setUp(ctx, &u, c, shm, dns, volumes)
	var undoErr error
	if err != nil {
		undoErr = u.run(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.state = sandboxNew
		s.taint(undoErr)
		close(s.settled)
		s.settled = make(chan struct{})
		return errors.Join(fmt.Errorf("create sandbox: %w", err), undoErr)
	}
	s.state, s.teardown, s.ipc, s.uts = sandboxRunning, u, ipc, uts
	s.sharePID, s.hooks, s.hostname = c.SharePIDNS, hooks, c.Hostname
	for _, v := range volumes {
		s.volumes = append(s.volumes, v.MountPoint)
	}
	close(s.settled)
	s.cfg.Log.Info("sandbox created", "sandbox", c.ID)
	return nil
}

func (s *Sandbox) sandboxDir() string { return filepath.Join(s.cfg.RunDir, oci.SandboxDir) }

// setUp does the work of Create.
func (s *Sandbox) setUp(ctx context.Context, u *undo, c SandboxConfig, shm string, dns []byte, volumes []Storage) (ipc, uts *os.File, err error) {
	shmDir := filepath.Join(s.sandboxDir(), "shm")
	for _, dir := range []string{filepath.Join(s.cfg.RunDir, oci.SharedDir), shmDir} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, nil, err
		}
	}
	if err := s.cfg.Kernel.Mount("shm", shmDir, "tmpfs", shm); err != nil {
		return nil, nil, fmt.Errorf("shared memory: %w", err)
	}
	u.add("shared memory", func(context.Context) error { return s.cfg.Kernel.Unmount(shmDir) })
	if err := s.setUpDNS(u, dns); err != nil {
		return nil, nil, fmt.Errorf("name resolution: %w", err)
	}
	if err := s.addVolumes(ctx, u, sandboxOwner, volumes); err != nil {
		return nil, nil, err
	}
	ipc, uts, err = s.cfg.Kernel.Namespaces(c.Hostname)
	if err != nil {
		return nil, nil, fmt.Errorf("namespaces: %w", err)
	}
	u.add("namespaces", func(context.Context) error { return errors.Join(ipc.Close(), uts.Close()) })
	return ipc, uts, nil
}

// findHooks returns the hooks that the guest has at a path. That there are none is logged and no error: the host names
// a folder whether the guest has it or not.
func (s *Sandbox) findHooks(dir string) *specs.Hooks {
	if dir == "" || s.cfg.Hooks == nil {
		return nil
	}
	hooks, err := s.cfg.Hooks(dir)
	if err != nil {
		s.cfg.Log.Warn("guest hooks are not used", "folder", dir, "error", err)
		return nil
	}
	return hooks
}

// setUpDNS writes the sandbox's resolv.conf and puts it over the one of the root file system, if that has one.
func (s *Sandbox) setUpDNS(u *undo, dns []byte) error {
	if len(dns) == 0 {
		return nil
	}
	file := filepath.Join(s.sandboxDir(), "resolv.conf")
	if err := os.WriteFile(file, dns, 0o644); err != nil { //nolint:gosec // G306: every user of a container reads it
		return err
	}
	u.add("resolv.conf", func(context.Context) error { return os.Remove(file) })
	if _, err := os.Stat(s.cfg.ResolvConf); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := s.cfg.Kernel.Mount(file, s.cfg.ResolvConf, "bind", ""); err != nil {
		return err
	}
	u.add("mount of resolv.conf", func(context.Context) error { return s.cfg.Kernel.Unmount(s.cfg.ResolvConf) })
	return nil
}

// resolvConf joins the lines of a resolv.conf(5).
func resolvConf(lines []string) ([]byte, error) {
	size := 0
	for _, line := range lines {
		if size += len(line) + 1; size > maxResolvConf || strings.ContainsAny(line, "\x00\r\n") {
			return nil, fmt.Errorf("%w: DNS lines are longer than %d bytes together or not single lines", ErrInvalidArgument, maxResolvConf)
		}
	}
	if size == 0 {
		return nil, nil
	}
	return []byte(strings.Join(lines, "\n") + "\n"), nil
}

// refusal says why the sandbox takes no new work; nil if it does. The lock is held.
func (s *Sandbox) refusal() error {
	switch {
	case s.tainted != nil:
		return fmt.Errorf("%w: %w", ErrTainted, s.tainted)
	case s.state == sandboxDestroyed:
		return fmt.Errorf("the sandbox is destroyed: %w", ErrState)
	case s.state == sandboxRunning:
		return nil
	}
	return fmt.Errorf("the sandbox has not been created: %w", ErrState)
}

// taint marks the sandbox if an undo failed. The lock is held.
func (s *Sandbox) taint(err error) {
	if err != nil {
		s.cfg.Log.Error("the sandbox is tainted", "error", err)
		s.tainted = errors.Join(s.tainted, err)
	}
}

// UpdateInterface brings the link with the wanted hardware address into the wanted state. The text of the error for
// a link that is not there (yet) has "Link not found" in it, for which the shim looks.
func (s *Sandbox) UpdateInterface(ctx context.Context, want netdev.Interface) error {
	if err := s.checkNetwork(); err != nil {
		return err
	}
	return s.cfg.Network.UpdateInterface(ctx, want)
}

// UpdateRoutes adds or replaces routes and returns those of the main table. It never deletes one.
func (s *Sandbox) UpdateRoutes(ctx context.Context, want []netdev.Route) ([]netdev.Route, error) {
	if err := s.checkNetwork(); err != nil {
		return nil, err
	}
	return s.cfg.Network.UpdateRoutes(ctx, want)
}

// checkNetwork allows network changes before Create too, since the shim makes them then.
func (s *Sandbox) checkNetwork() error {
	if s.cfg.Network == nil {
		return fmt.Errorf("configure network: %w", ErrUnsupported)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tainted != nil || s.state == sandboxDestroyed {
		return fmt.Errorf("configure network: %w", s.refusal())
	}
	return nil
}
