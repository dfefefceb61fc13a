// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent/cgroup"
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
	// SharePIDNS puts all containers into the PID namespace of the first.
	SharePIDNS bool
	// GuestHookPath is a folder of the guest with hooks for every container; empty means none.
	GuestHookPath string
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
	// FSGroup is the group that the files of the storage shall belong to; nil leaves them alone.
	FSGroup *FSGroup
}

// FSGroup is a group for the files of a storage, see Kubernetes' fsGroup and fsGroupChangePolicy.
type FSGroup struct {
	GID uint32
	// OnRootMismatch leaves the files alone if the top folder belongs to the group already.
	OnRootMismatch bool
}

// Volumes mounts storages other than images: memory and folders of the guest.
type Volumes interface {
	// Add mounts a storage for an owner, a container or the sandbox. One that is mounted already is used by both.
	Add(ctx context.Context, owner string, s Storage) error
	// Release drops the storages of an owner that do not outlive it. After an error it may be called again.
	Release(ctx context.Context, owner string) error
	// Update mounts a storage of memory anew with other options.
	Update(ctx context.Context, s Storage) error
	// Close drops all storages, at the end of the sandbox.
	Close(ctx context.Context) error
}

// Share is the folder with the files that the host copies into the guest, below oci.SharedDir. No link that the host
// makes there leads out of it.
type Share interface {
	// Copy writes a piece of a file.
	Copy(f File) error
	// OpenBeneath returns what is at a path as something to mount (O_PATH). No link is followed.
	OpenBeneath(path string) (*os.File, error)
	// ReadHead returns the first bytes of a file, limit at most.
	ReadHead(path string, limit int64) ([]byte, error)
	// DropStale unmounts what is mounted there and answers no more.
	DropStale(ctx context.Context) error
}

// File is a piece of a file that the host copies into the guest, in the terms of CopyFileRequest.
type File struct {
	Path string
	// Size is that of the whole file in bytes.
	Size int64
	// Mode is that of stat(2), with the type; DirMode is that of folders that have to be made.
	Mode, DirMode uint32
	UID, GID      int32
	// Offset is where Data belongs in the file.
	Offset int64
	Data   []byte
}

// DriverImageGuestPull is the Storage driver of a root file system that the guest pulls by itself.
const DriverImageGuestPull = "image_guest_pull"

// Images makes the root file systems of containers out of image references. A reference comes from the host and is
// not trusted; what Mount exposes is verified, decrypted and unpacked inside the guest.
type Images interface {
	// Mount pulls the image unless it is there, and mounts a root file system of it, writable by this container alone,
	// at target, which exists and is empty. It returns the digest that the reference stands for. On error nothing stays
	// mounted.
	Mount(ctx context.Context, containerID, reference, target string) (digest string, err error)
	// MountPause does the same for the built-in pause image and returns the process that it runs.
	MountPause(ctx context.Context, containerID, target string) (*specs.Process, error)
	// Unmount drops what Mount or MountPause made for the container. Nothing to drop is no error.
	Unmount(ctx context.Context, containerID string) error
}

// Runtime is an OCI runtime. Its methods block until the runtime has answered; none holds a lock of the sandbox.
type Runtime interface {
	// Create runs the container's init process up to the point where Start lets it go.
	Create(ctx context.Context, id, bundle string, stdio Stdio) (Started, error)
	// Start lets a created container run.
	Start(ctx context.Context, id string) error
	// Exec starts a further process in the container.
	Exec(ctx context.Context, id string, process *specs.Process, stdio Stdio) (Started, error)
	// Update changes the limits of a container.
	Update(ctx context.Context, id string, resources *specs.LinuxResources) error
	// Delete removes a container, killing what still runs of it. A container that the runtime does not know is no error.
	Delete(ctx context.Context, id string) error
}

// Stdio are the container's ends of its standard streams. The callee does not close them.
type Stdio struct {
	// Stdin, Stdout and Stderr are nil with a terminal.
	Stdin, Stdout, Stderr *os.File
	// Terminal asks for a terminal of the process's own.
	Terminal bool
}

// Started is what a Runtime says of a process.
type Started struct {
	// PID is in the agent's PID namespace.
	PID int
	// Console is the master end of the terminal, if one was asked for, in non-blocking mode; the caller closes it. It may be
	// set next to an error.
	Console *os.File
}

// Cgroups are the control groups that the runtime made for containers. Paths are those of the containers' specs. A group
// that is gone is fs.ErrNotExist.
type Cgroups interface {
	// Stats reads what the container uses. A controller that the guest does not have leaves its part nil.
	Stats(path string) (*cgroup.Stats, error)
	// Freeze stops every process, and Thaw lets them go on; both wait for that.
	Freeze(ctx context.Context, path string) error
	Thaw(ctx context.Context, path string) error
	// Kill kills every process. A group that is gone is no error.
	Kill(path string) error
	// Remove removes an empty group and those in it. A group that is gone is no error.
	Remove(ctx context.Context, path string) error
	// RemoveEmpty removes one group that has neither processes nor groups in it.
	RemoveEmpty(path string) error
}

// OOM tells of processes that the kernel killed because their container used too much memory.
type OOM interface {
	// Add calls report for each time from now on, until Remove; it must not block.
	Add(path string, report func()) error
	Remove(path string)
}

// GuestDetails describes the guest.
type GuestDetails struct {
	// MemoryBlock is the size of a block of memory that can be plugged in, in bytes; 0 if none can.
	MemoryBlock uint64
	// MemoryProbe says that the kernel has to be told of memory that was plugged in.
	MemoryProbe bool
	// Seccomp says that the OCI runtime applies seccomp profiles.
	Seccomp bool
	// StorageDrivers are those of Storage.Driver that are served.
	StorageDrivers []string
}

// Kernel makes the few changes to the guest's kernel that a sandbox needs for itself.
type Kernel interface {
	// Namespaces makes an IPC and a UTS namespace with that host name (empty: the one of the guest). They live as long as
	// the files are open, or something runs in them.
	Namespaces(hostname string) (ipc, uts *os.File, err error)
	// Mount mounts source at target: a tmpfs whose data are the options, or with fstype "bind" a bind mount. With "remount"
	// it gives the tmpfs that is there other options.
	Mount(source, target, fstype, data string) error
	// Unmount detaches what is mounted at target. Nothing mounted there is no error.
	Unmount(target string) error
	// Bind mounts what an open file stands for, with all that is mounted below it, at target.
	Bind(source *os.File, target string) error
	// SetSysctl writes a kernel parameter; the key is in dotted form, as in a runtime spec.
	SetSysctl(key, value string) error
}

// Network configures the sandbox's network interfaces and routes.
type Network interface {
	UpdateInterface(ctx context.Context, want netdev.Interface) error
	UpdateRoutes(ctx context.Context, want []netdev.Route) ([]netdev.Route, error)
}
