// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// version is the version of the runtime spec that the result complies with: what every OCI runtime of today reads.
const version = "1.0.2"

// Options say what the guest has for the container.
type Options struct {
	// ID is the container's id.
	ID string
	// RunDir is the folder below which bind mounts may have their source.
	RunDir string
	// Rootfs is the container's root file system.
	Rootfs string
	// IPC, UTS and PID are paths of namespaces to join; empty means a new one.
	IPC, UTS, PID string
}

// Result is what becomes of a spec.
type Result struct {
	// Spec is for the OCI runtime.
	Spec *specs.Spec
	// NetSysctls are the net.* kernel parameters by dotted key. OCI runtimes refuse them without a network namespace
	// of the container's own, so that the agent has to set them.
	NetSysctls map[string]string
}

// Convert turns the spec of the shim into one for the OCI runtime in the guest. It does not change its argument. The
// container stays in the network namespace of the agent.
func Convert(in *specs.Spec, o Options) (*Result, error) {
	if in == nil {
		return nil, errors.New("container spec: missing")
	}
	process, err := ConvertProcess(in.Process)
	if err != nil {
		return nil, err
	}
	if err := CheckHostname(in.Hostname); err != nil {
		return nil, err
	}
	mounts, err := convertMounts(in.Mounts, o.RunDir)
	if err != nil {
		return nil, err
	}
	linux, net, err := convertLinux(in.Linux, o)
	if err != nil {
		return nil, err
	}
	return &Result{
		Spec: &specs.Spec{
			Version:  version,
			Process:  process,
			Root:     &specs.Root{Path: o.Rootfs, Readonly: in.Root != nil && in.Root.Readonly},
			Hostname: in.Hostname,
			Mounts:   mounts,
			Linux:    linux,
		},
		NetSysctls: net,
	}, nil
}

func convertLinux(in *specs.Linux, o Options) (*specs.Linux, map[string]string, error) {
	if in == nil {
		in = &specs.Linux{}
	}
	if err := refuseLinux(in); err != nil {
		return nil, nil, err
	}
	sysctls, net, err := splitSysctls(in.Sysctl)
	if err != nil {
		return nil, nil, err
	}
	cgroup, err := cgroupPath(in.CgroupsPath, o.ID)
	if err != nil {
		return nil, nil, err
	}
	resources, err := convertResources(in.Resources)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range slices.Concat(in.MaskedPaths, in.ReadonlyPaths) {
		if err := checkPath(p); err != nil {
			return nil, nil, fmt.Errorf("container spec: masked or read-only path: %w", err)
		}
	}
	return &specs.Linux{
		Sysctl:        sysctls,
		Resources:     resources,
		CgroupsPath:   cgroup,
		Namespaces:    Namespaces(o),
		Seccomp:       in.Seccomp,
		MaskedPaths:   guarded(masked, in.MaskedPaths),
		ReadonlyPaths: guarded(readonly, in.ReadonlyPaths),
	}, net, nil
}

// Paths that no container sees, and that none changes, whatever its spec says. Root in a container is root in the guest:
// without them it would, for instance, write a program of its own to /proc/sys/kernel/core_pattern, and the kernel would
// run that outside of the container.
var (
	masked = []string{
		"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonly = []string{
		"/proc/bus", "/proc/cio_ignore", "/proc/dynamic_debug", "/proc/fs", "/proc/irq", "/proc/mtrr", "/proc/sys",
		"/proc/sysrq-trigger",
	}
)

// guarded adds the paths of a spec to those that are always there.
func guarded(always, more []string) []string {
	paths := slices.Clone(always)
	for _, p := range more {
		if !slices.Contains(paths, p) {
			paths = append(paths, p)
		}
	}
	return paths
}

// Namespaces returns the namespaces of a container. There is no network namespace: the container shares the agent's,
// whose links the shim configures. Convert calls it.
func Namespaces(o Options) []specs.LinuxNamespace {
	return []specs.LinuxNamespace{
		{Type: specs.MountNamespace},
		{Type: specs.IPCNamespace, Path: o.IPC},
		{Type: specs.UTSNamespace, Path: o.UTS},
		{Type: specs.PIDNamespace, Path: o.PID},
		{Type: specs.CgroupNamespace},
	}
}

// refuseLinux returns an error for what the guest does not offer and the container may rely on.
func refuseLinux(in *specs.Linux) error {
	for _, ns := range in.Namespaces {
		if ns.Path != "" {
			return fmt.Errorf("container spec: %s namespace %q is a path of the host; leave the path out", ns.Type, ns.Path)
		}
		if ns.Type == specs.UserNamespace || ns.Type == specs.TimeNamespace {
			return fmt.Errorf("container spec: a %s namespace is not offered", ns.Type)
		}
	}
	for _, d := range in.Devices {
		if !slices.Contains(defaultDevices, device{d.Path, d.Type, d.Major, d.Minor}) {
			return fmt.Errorf("container spec: device %q (%s %d:%d) is not offered, only the default ones are", d.Path, d.Type, d.Major, d.Minor)
		}
	}
	if s := in.Seccomp; s != nil && (s.ListenerPath != "" || s.ListenerMetadata != "") {
		return errors.New("container spec: a seccomp listener is not offered")
	}
	switch in.RootfsPropagation {
	case "", "private", "rprivate", "slave", "rslave":
	default:
		return fmt.Errorf("container spec: root file system propagation %q is not offered", in.RootfsPropagation)
	}
	for what, given := range map[string]bool{
		"id mappings": len(in.UIDMappings)+len(in.GIDMappings) > 0, "network devices": len(in.NetDevices) > 0,
		"Intel RDT": in.IntelRdt != nil, "a memory policy": in.MemoryPolicy != nil,
		"a personality": in.Personality != nil, "time offsets": len(in.TimeOffsets) > 0,
	} {
		if given {
			return fmt.Errorf("container spec: %s: not offered", what)
		}
	}
	return nil
}

type device struct {
	path, kind   string
	major, minor int64
}

// defaultDevices are those that an OCI runtime makes by itself, see the runtime spec, config-linux.md.
var defaultDevices = []device{
	{"/dev/null", "c", 1, 3},
	{"/dev/zero", "c", 1, 5},
	{"/dev/full", "c", 1, 7},
	{"/dev/random", "c", 1, 8},
	{"/dev/urandom", "c", 1, 9},
	{"/dev/tty", "c", 5, 0},
	{"/dev/console", "c", 5, 1},
	{"/dev/ptmx", "c", 5, 2},
}

var (
	hostname = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9])?$`)
	// A component of a key may hold slashes, which stand for dots, but must not consist of them.
	netSysctl   = regexp.MustCompile(`^net(\.[a-zA-Z0-9_-]+(/[a-zA-Z0-9_-]+)*)+$`)
	otherSysctl = regexp.MustCompile(`^(kernel\.(shm(all|max|mni|_rmid_forced)|msg(max|mnb|mni)|sem|domainname)|fs\.mqueue\.[a-z_]+)$`)
)

// CheckHostname reports an error for what cannot be a host name: more than 64 bytes, or other than letters, digits,
// dots, hyphens and underscores. Empty means none and is right.
func CheckHostname(name string) error {
	if name != "" && !hostname.MatchString(name) {
		return fmt.Errorf("host name %q is not well formed", name)
	}
	return nil
}

// splitSysctls separates net.* from the rest, which has to belong to a namespace of the container.
func splitSysctls(in map[string]string) (own, net map[string]string, err error) {
	for _, key := range slices.Sorted(maps.Keys(in)) {
		value := in[key]
		if len(value) > 4096 || strings.ContainsAny(value, "\x00\n") {
			return nil, nil, fmt.Errorf("container spec: value of sysctl %q is longer than 4096 bytes or not one line", key)
		}
		switch {
		case otherSysctl.MatchString(key):
			put(&own, key, value)
		case netSysctl.MatchString(key):
			put(&net, key, value)
		default:
			return nil, nil, fmt.Errorf("container spec: sysctl %q is malformed or would change the whole guest", key)
		}
	}
	return own, net, nil
}

func put(m *map[string]string, key, value string) {
	if *m == nil {
		*m = make(map[string]string)
	}
	(*m)[key] = value
}

// checkPath reports an error unless p is absolute and clean.
func checkPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) || len(p) > 4095 {
		return fmt.Errorf("%q is not a clean absolute path", p)
	}
	return nil
}

// cleanPath returns an absolute path inside the container in its shortest form.
func cleanPath(p string) (string, error) {
	if !path.IsAbs(p) {
		return "", fmt.Errorf("%q is not an absolute path", p)
	}
	p = path.Clean(p)
	return p, checkPath(p)
}
