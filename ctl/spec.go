// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// Names that the Kata shim uses.
const (
	runDir          = "/run/kata-containers"
	driverGuestPull = "image_guest_pull"
	pauseSource     = "pause"

	annotationType      = "io.kubernetes.cri.container-type"
	annotationSandboxID = "io.kubernetes.cri.sandbox-id"
	annotationImage     = "io.kubernetes.cri.image-name"
	annotationKataType  = "io.katacontainers.pkg.oci.container_type"

	// DefaultPath is the PATH of a process that is given no other.
	DefaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	// DefaultTerm is the TERM of a process with a terminal that is given no other, as in Kubernetes.
	DefaultTerm = "TERM=xterm"
)

// Process is what to run in a container.
type Process struct {
	Args []string
	// Env are NAME=VALUE; without PATH, DefaultPath is added.
	Env []string
	// Cwd is the working directory; empty means /.
	Cwd      string
	UID, GID uint32
	// Terminal gives it a terminal of its own, of that size if it is known; without TERM, DefaultTerm is added to Env.
	Terminal bool
	Size     Size
}

// Mount is a file or folder of the guest that a container sees.
type Mount struct {
	// Source is the name under which Session.Copy has put it into the guest, or an absolute path there.
	Source string
	// Destination is where the container sees it.
	Destination string
	ReadOnly    bool
}

// Container is a container to create.
type Container struct {
	// ID is the container's id; SandboxID that of its sandbox, and equal to ID for a container that is its own sandbox.
	ID, SandboxID string
	// Image is the reference that the guest pulls. It is not used with Pause.
	Image string
	// Pause makes this the sandbox's pause container, whose root file system and process the guest has built in.
	Pause   bool
	Process Process
	// ReadonlyRootfs mounts the root file system read-only.
	ReadonlyRootfs bool
	// SandboxPIDNS shares the PID namespace of the sandbox's first container.
	SandboxPIDNS bool
	// Mounts are added to the spec's own.
	Mounts []Mount
	// Annotations are added to the spec's own.
	Annotations map[string]string
}

// Request returns the CreateContainerRequest as the shim would send it.
func (c Container) Request() (*pb.CreateContainerRequest, error) {
	image, kind := c.Image, "container"
	if c.Pause {
		image, kind = pauseSource, "sandbox"
	}
	switch {
	case image == "":
		return nil, errors.New("create container: the image is missing")
	case len(c.Process.Args) == 0 && !c.Pause:
		return nil, errors.New("create container: the command is missing; give it after --")
	}
	mounts, err := c.mounts()
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	sandboxID := c.SandboxID
	if sandboxID == "" {
		sandboxID = c.ID
	}
	metadata := map[string]string{annotationType: kind, annotationSandboxID: sandboxID, annotationImage: image}
	option, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return nil, fmt.Errorf("encode image pull option: %w", err)
	}
	rootfs := path.Join(runDir, c.ID, "rootfs")
	return &pb.CreateContainerRequest{
		ContainerId: c.ID,
		ExecId:      c.ID,
		Storages: []*pb.Storage{{
			Driver: driverGuestPull, DriverOptions: []string{driverGuestPull + "=" + string(option)},
			Source: image, Fstype: "overlay", MountPoint: rootfs,
		}},
		OCI:          c.spec(rootfs, sandboxID, mounts, metadata),
		SandboxPidns: c.SandboxPIDNS,
	}, nil
}

// spec is the default OCI spec of containerd for a container, after the shim has taken from it what it takes.
func (c Container) spec(rootfs, sandboxID string, mounts []*pb.Mount, metadata map[string]string) *pb.Spec {
	annotations := map[string]string{annotationKataType: "pod_container"}
	if c.Pause || sandboxID == c.ID {
		annotations[annotationKataType] = "pod_sandbox"
	}
	for _, m := range []map[string]string{metadata, c.Annotations} {
		maps.Copy(annotations, m)
	}
	process := c.Process
	if c.Pause {
		process = Process{Args: []string{"/pause"}}
	}
	return &pb.Spec{
		Version:     "1.2.0",
		Process:     process.pb(defaultCapabilities()),
		Root:        &pb.Root{Path: rootfs, Readonly: c.ReadonlyRootfs},
		Mounts:      mounts,
		Annotations: annotations,
		Linux: &pb.Linux{
			Resources:   &pb.LinuxResources{CPU: &pb.LinuxCPU{Shares: 1024}},
			CgroupsPath: "/kata/" + c.ID,
			Namespaces:  []*pb.LinuxNamespace{{Type: "ipc"}, {Type: "uts"}, {Type: "mount"}},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// pb returns the process's wire form; nil capabilities leave them to the agent.
func (p Process) pb(capabilities *pb.LinuxCapabilities) *pb.Process {
	env := withDefault(p.Env, DefaultPath)
	if p.Terminal {
		env = withDefault(env, DefaultTerm)
	}
	cwd := p.Cwd
	if cwd == "" {
		cwd = "/"
	}
	out := &pb.Process{
		Args: p.Args, Env: env, Cwd: cwd, User: &pb.User{UID: p.UID, GID: p.GID}, Capabilities: capabilities,
	}
	if p.Terminal {
		out.Terminal = true
		if p.Size != (Size{}) {
			out.ConsoleSize = &pb.Box{Height: p.Size.Rows, Width: p.Size.Columns}
		}
	}
	if capabilities != nil {
		out.NoNewPrivileges = true
		out.Rlimits = []*pb.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}}
	}
	return out
}

// withDefault returns env, with the variable in front unless env has it.
func withDefault(env []string, variable string) []string {
	name, _, _ := strings.Cut(variable, "=")
	if slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, name+"=") }) {
		return env
	}
	return append([]string{variable}, env...)
}

// mounts returns containerd's default mounts and the container's own.
func (c Container) mounts() ([]*pb.Mount, error) {
	out := defaultMounts()
	for _, m := range c.Mounts {
		source := m.Source
		if !path.IsAbs(source) {
			var err error
			if source, err = GuestPath(source); err != nil {
				return nil, fmt.Errorf("mount: %w", err)
			}
		}
		if !path.IsAbs(m.Destination) {
			return nil, fmt.Errorf("mount %s: %q is no absolute path in the container", m.Source, m.Destination)
		}
		access := "rw"
		if m.ReadOnly {
			access = "ro"
		}
		out = append(out, &pb.Mount{Destination: m.Destination, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", access}})
	}
	return out, nil
}

func defaultMounts() []*pb.Mount {
	return []*pb.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

// defaultCapabilities are those that containerd gives to a container.
func defaultCapabilities() *pb.LinuxCapabilities {
	set := []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
	return &pb.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set}
}
