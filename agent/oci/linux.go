// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxPaths bounds masked and read-only paths of a container: each becomes a mount.
const maxPaths = 1024

func convertLinux(in *specs.Linux, process *specs.Process, o Options, n *notes) (*specs.Linux, map[string]string, error) {
	if in == nil {
		in = &specs.Linux{}
	}
	if err := refuseLinux(in, o.Privileged); err != nil {
		return nil, nil, err
	}
	user, err := checkUserNamespace(in, o.Privileged)
	if err != nil {
		return nil, nil, err
	}
	sysctls, net, err := splitSysctls(in.Sysctl)
	if err != nil {
		return nil, nil, err
	}
	if user && len(sysctls) > 0 {
		return nil, nil, fmt.Errorf("container spec: sysctl %q with a user namespace: the sandbox's namespaces, to which it "+
			"belongs, are not the container's to change", slices.Sorted(maps.Keys(sysctls))[0])
	}
	cgroup, err := cgroupPath(in.CgroupsPath, o.ID)
	if err != nil {
		return nil, nil, err
	}
	resources, err := convertResources(in.Resources, o, n)
	if err != nil {
		return nil, nil, err
	}
	devices, rules, err := convertDevices(in, o.Privileged, process.Capabilities)
	if err != nil {
		return nil, nil, err
	}
	resources.Devices = rules
	seccomp, err := convertSeccomp(in.Seccomp)
	if err != nil {
		return nil, nil, err
	}
	paths := slices.Concat(in.MaskedPaths, in.ReadonlyPaths)
	if len(paths) > maxPaths {
		return nil, nil, fmt.Errorf("container spec: %d masked and read-only paths, at most %d are offered", len(paths), maxPaths)
	}
	for _, p := range paths {
		if err := checkPath(p); err != nil {
			return nil, nil, fmt.Errorf("container spec: masked or read-only path: %w", err)
		}
	}
	out := &specs.Linux{
		UIDMappings:   slices.Clone(in.UIDMappings),
		GIDMappings:   slices.Clone(in.GIDMappings),
		Sysctl:        sysctls,
		Resources:     resources,
		CgroupsPath:   cgroup,
		Devices:       devices,
		Seccomp:       seccomp,
		MaskedPaths:   guarded(masked, in.MaskedPaths, o.Privileged),
		ReadonlyPaths: guarded(readonly, in.ReadonlyPaths, o.Privileged),
	}
	if sharedPropagation(in.RootfsPropagation) { // refuseLinux has seen to it that it may be
		out.RootfsPropagation = in.RootfsPropagation
	}
	return out, net, nil
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

// guarded adds the paths of a spec to those that are always there. In a privileged guest, a spec without any is that of
// a privileged container, which is to see them all.
func guarded(always, more []string, privileged bool) []string {
	if privileged && len(more) == 0 {
		return nil
	}
	paths := slices.Clone(always)
	for _, p := range more {
		if !slices.Contains(paths, p) {
			paths = append(paths, p)
		}
	}
	return paths
}

// namespaces returns the namespaces of a container. There is no network namespace: the container shares the agent's,
// whose links the shim configures. A user namespace is not among them, see Result.Join.
func namespaces(ipc, uts, pid string) []specs.LinuxNamespace {
	return []specs.LinuxNamespace{
		{Type: specs.MountNamespace},
		{Type: specs.IPCNamespace, Path: ipc},
		{Type: specs.UTSNamespace, Path: uts},
		{Type: specs.PIDNamespace, Path: pid},
		{Type: specs.CgroupNamespace},
	}
}

// refuseLinux returns an error for what the guest does not offer and the container may rely on.
func refuseLinux(in *specs.Linux, privileged bool) error {
	for _, ns := range in.Namespaces {
		if ns.Path != "" {
			return fmt.Errorf("container spec: %s namespace %q is a path of the host; leave the path out", ns.Type, ns.Path)
		}
		if ns.Type == specs.TimeNamespace {
			return fmt.Errorf("container spec: a %s namespace is not offered", ns.Type)
		}
	}
	switch p := in.RootfsPropagation; {
	case p == "", p == "private", p == "rprivate", p == "slave", p == "rslave":
	case sharedPropagation(p) && privileged:
	case sharedPropagation(p):
		return fmt.Errorf("container spec: root file system propagation %q is not offered; %s", p, hint)
	default:
		return fmt.Errorf("container spec: root file system propagation %q is not offered", p)
	}
	for what, given := range map[string]bool{
		"network devices": len(in.NetDevices) > 0,
		"Intel RDT":       in.IntelRdt != nil, "a memory policy": in.MemoryPolicy != nil,
		"a personality": in.Personality != nil, "time offsets": len(in.TimeOffsets) > 0,
	} {
		if given {
			return fmt.Errorf("container spec: %s: not offered", what)
		}
	}
	return nil
}

func sharedPropagation(p string) bool { return p == "shared" || p == "rshared" }

var (
	// A component of a key may hold slashes, which stand for dots, but must not consist of them.
	netSysctl   = regexp.MustCompile(`^net(\.[a-zA-Z0-9_-]+(/[a-zA-Z0-9_-]+)*)+$`)
	otherSysctl = regexp.MustCompile(`^(kernel\.(shm(all|max|mni|_rmid_forced)|msg(max|mnb|mni)|sem|domainname)|fs\.mqueue\.[a-z_]+)$`)
)

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
