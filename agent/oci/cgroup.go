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

// defaultCgroup is the parent of containers that come without a cgroup path.
const defaultCgroup = "/containers"

var (
	cgroupComponent = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.@-]{0,254}$`)
	unifiedKey      = regexp.MustCompile(`^[a-z0-9_]+(\.[a-zA-Z0-9_]+)+$`)
	hugepageSize    = regexp.MustCompile(`^[1-9][0-9]{0,9}[KMG]B$`)
)

// cgroupPath turns a cgroup path of the shim, also in systemd's form "slice:prefix:name", into an absolute one that
// is not the root. An empty one becomes a path made of the container's id.
func cgroupPath(p, id string) (string, error) {
	parts := strings.FieldsFunc(p, func(r rune) bool { return r == '/' || r == ':' })
	if len(parts) == 0 {
		return path.Join(defaultCgroup, id), nil
	}
	if len(p) > 4095 || len(parts) > 32 {
		return "", errors.New("container spec: cgroup path is too long")
	}
	for _, part := range parts {
		if !cgroupComponent.MatchString(part) {
			return "", fmt.Errorf("container spec: cgroup path %q has the malformed part %q", p, part)
		}
	}
	return "/" + strings.Join(parts, "/"), nil
}

// CgroupsOverlap reports whether one of two cgroup paths of converted specs is or contains the other.
// Containers must not overlap: to remove the one would kill the other.
func CgroupsOverlap(a, b string) bool {
	return strings.HasPrefix(a+"/", b+"/") || strings.HasPrefix(b+"/", a+"/")
}

// convertResources takes over limits of memory, CPU time, number of processes and huge pages. CPU and memory nodes
// name those of the host and are left out, and so are what cgroup v2 does not have, block I/O and network classes.
// Devices are limited to the default ones, whatever was asked.
func convertResources(in *specs.LinuxResources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{Devices: deviceRules()}
	if in == nil {
		return out, nil
	}
	if m := in.Memory; m != nil {
		out.Memory = &specs.LinuxMemory{Limit: m.Limit, Reservation: m.Reservation, Swap: m.Swap}
	}
	if c := in.CPU; c != nil {
		out.CPU = &specs.LinuxCPU{Shares: c.Shares, Quota: c.Quota, Burst: c.Burst, Period: c.Period, Idle: c.Idle}
	}
	if in.Pids != nil {
		out.Pids = &specs.LinuxPids{Limit: in.Pids.Limit}
	}
	for _, h := range in.HugepageLimits {
		if !hugepageSize.MatchString(h.Pagesize) {
			return nil, fmt.Errorf("container spec: huge page size %q is malformed", h.Pagesize)
		}
	}
	out.HugepageLimits = slices.Clone(in.HugepageLimits)
	for key, value := range in.Unified {
		if !unifiedKey.MatchString(key) || strings.HasPrefix(key, "cgroup.") {
			return nil, fmt.Errorf("container spec: cgroup file %q is malformed or not offered", key)
		}
		if len(value) > 4096 || strings.ContainsRune(value, 0) {
			return nil, fmt.Errorf("container spec: value of cgroup file %q is longer than 4096 bytes or has a zero byte", key)
		}
	}
	out.Unified = maps.Clone(in.Unified)
	return out, nil
}

// deviceRules deny every device, then allow to make any node, and to use the default devices and the container's
// own terminals.
func deviceRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	for _, d := range defaultDevices {
		if d.path != "/dev/console" {
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.kind, Major: new(d.major), Minor: new(d.minor), Access: "rwm"})
		}
	}
	const unix98 = 136 // major number of /dev/pts
	return append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: new(int64(unix98)), Access: "rwm"})
}
