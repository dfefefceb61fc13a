// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent/netdev"
)

// SandboxConfig is what the shim asks of a new sandbox (pod).
type SandboxConfig struct {
	ID       string
	Hostname string
	// DNS holds the lines of resolv.conf, as they are.
	DNS []string
	// Storages are mounted for the life of the sandbox.
	Storages []Storage
}

// ContainerConfig is what the shim asks of a new container.
type ContainerConfig struct {
	ID string
	// Spec is the runtime spec as the shim sent it; agent/oci turns it into one that holds inside the guest.
	Spec *specs.Spec
	// Storages are mounted before the container is created and dropped with it.
	Storages []Storage
	// SandboxPIDNS puts the container into the PID namespace of the sandbox's first container.
	SandboxPIDNS bool
}

// Storage is one volume of a sandbox or container, in the terms of the Kata agent API.
type Storage struct {
	Driver        string
	DriverOptions []string
	Source        string
	FSType        string
	Options       []string
	MountPoint    string
}

// DriverImageGuestPull is the Storage driver of a root file system that the guest pulls by itself.
const DriverImageGuestPull = "image_guest_pull"

// Images makes the root file systems of containers out of image references. A reference comes from the host and is
// not trusted; what Mount exposes is verified, decrypted and unpacked inside the guest.
type Images interface {
	// Mount pulls the image unless it is there, and mounts a root file system of it, writable by this container alone,
	// at target, which exists and is empty. On error nothing stays mounted.
	Mount(ctx context.Context, containerID, reference, target string) error
	// MountPause does the same for the built-in pause image and returns the process that it runs.
	MountPause(ctx context.Context, containerID, target string) (*specs.Process, error)
	// Unmount drops what Mount or MountPause made for the container. Nothing to drop is no error.
	Unmount(ctx context.Context, containerID string) error
}

// Runtime is an OCI runtime. Its methods block until the runtime has answered; none holds a lock of the sandbox.
type Runtime interface {
	// Create runs the container's init process up to the point where Start lets it go, and returns its pid in the
	// agent's PID namespace.
	Create(ctx context.Context, id, bundle string, stdio Stdio) (pid int, err error)
	// Start lets a created container run.
	Start(ctx context.Context, id string) error
	// Exec starts a further process in the container and returns its pid in the agent's PID namespace.
	Exec(ctx context.Context, id, execID string, process *specs.Process, stdio Stdio) (pid int, err error)
	// Kill sends a signal to the container's init process, or with all to every process of the container.
	Kill(ctx context.Context, id string, signal int, all bool) error
	// Delete removes a container, killing what still runs of it. A container that the runtime does not know is no error.
	Delete(ctx context.Context, id string) error
}

// Stdio are the container's ends of its standard streams. The callee does not close them.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}

// Kernel makes the few changes to the guest's kernel that a sandbox needs for itself.
type Kernel interface {
	// Namespaces makes an IPC and a UTS namespace with that host name (empty: the one of the guest). They live as long as
	// the files are open, or something runs in them.
	Namespaces(hostname string) (ipc, uts *os.File, err error)
	// Mount mounts source at target: a tmpfs whose data are the options, or with fstype "bind" a bind mount.
	Mount(source, target, fstype, data string) error
	// Unmount detaches what is mounted at target. Nothing mounted there is no error.
	Unmount(target string) error
	// SetSysctl writes a kernel parameter; the key is in dotted form, as in a runtime spec.
	SetSysctl(key, value string) error
}

// Network configures the sandbox's network interfaces and routes.
type Network interface {
	UpdateInterface(ctx context.Context, want netdev.Interface) error
	UpdateRoutes(ctx context.Context, want []netdev.Route) ([]netdev.Route, error)
}
