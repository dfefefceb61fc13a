// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent/netdev"
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
	// Log may be nil.
	Log *slog.Logger
	// RunDir holds bundles and the files of the sandbox; empty means DefaultRunDir.
	RunDir string
	// ResolvConf is the file that the sandbox's resolv.conf is bind-mounted over; empty means /etc/resolv.conf.
	ResolvConf string
}

// DefaultRunDir is where the Kata shim expects bundles and shared files in the guest.
const DefaultRunDir = "/run/kata-containers"

// Sandbox is a pod: the containers that share this guest. Its methods may be called concurrently.
type Sandbox struct {
	done chan struct{}
}

// NewSandbox returns a sandbox that Create brings to life.
func NewSandbox(c Config) (*Sandbox, error) {
	return &Sandbox{done: make(chan struct{})}, nil
}

var errTODO = errors.New("not written yet")

// Create sets the sandbox up. It can be called once.
func (s *Sandbox) Create(ctx context.Context, c SandboxConfig) error { return errTODO }

// Destroy kills and removes every container; calls that block on them return, and Done is closed.
func (s *Sandbox) Destroy(ctx context.Context) error { return errTODO }

// Done is closed when the sandbox has been destroyed.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// CreateContainer makes the container's root file system and bundle and starts its init process up to the barrier.
func (s *Sandbox) CreateContainer(ctx context.Context, c ContainerConfig) error { return errTODO }

// StartContainer lets a created container run; it works once.
func (s *Sandbox) StartContainer(ctx context.Context, id string) error { return errTODO }

// RemoveContainer kills what runs of the container and removes it. A timeout of 0 means the default.
func (s *Sandbox) RemoveContainer(ctx context.Context, id string, timeout time.Duration) error {
	return errTODO
}

// Exec starts a further process in a running container.
func (s *Sandbox) Exec(ctx context.Context, containerID, execID string, p *specs.Process) error {
	return errTODO
}

// Signal sends a signal to a process.
func (s *Sandbox) Signal(ctx context.Context, containerID, execID string, signal int) error {
	return errTODO
}

// Wait blocks until the process has exited, and returns its exit code, or 128 and the number of the signal that ended it.
func (s *Sandbox) Wait(ctx context.Context, containerID, execID string) (int, error) {
	return 0, errTODO
}

// ReadStdout reads up to max bytes of the process's standard output; no bytes and no error mean its end.
func (s *Sandbox) ReadStdout(ctx context.Context, containerID, execID string, max int) ([]byte, error) {
	return nil, errTODO
}

// ReadStderr is ReadStdout for standard error.
func (s *Sandbox) ReadStderr(ctx context.Context, containerID, execID string, max int) ([]byte, error) {
	return nil, errTODO
}

// UpdateInterface brings the link with the wanted hardware address into the wanted state.
func (s *Sandbox) UpdateInterface(ctx context.Context, want netdev.Interface) error { return errTODO }

// UpdateRoutes adds or replaces routes and returns those of the main table.
func (s *Sandbox) UpdateRoutes(ctx context.Context, want []netdev.Route) ([]netdev.Route, error) {
	return nil, errTODO
}
