// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A container with a user namespace still joins the sandbox's IPC and UTS namespaces, which belong to the initial user
// namespace. What follows of it:
//   - The OCI runtime (crun) joins them and mounts mqueue, and proc of a joined PID namespace, before it makes the user
//     namespace, so these mounts need nothing.
//   - It could set neither the host name, which it must not anyway, see Result.Join, nor sysctls of these namespaces:
//     convertLinux refuses them.
//   - The network namespace is the guest's, so that the kernel lets nobody in the container mount sysfs. crun falls back
//     to a bind mount of the guest's /sys, and forgets to make it read-only. sysMount asks for it as it ought to be.

// maxMappings is how many ranges of ids the kernel takes per map, user_namespaces(7).
const maxMappings = 340

// checkUserNamespace reports whether the spec asks for a user namespace, and an error if it does so wrongly.
func checkUserNamespace(in *specs.Linux, privileged bool) (bool, error) {
	user := slices.ContainsFunc(in.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace })
	if !user {
		if len(in.UIDMappings)+len(in.GIDMappings) > 0 {
			return false, errors.New("container spec: id mappings without a user namespace")
		}
		return false, nil
	}
	for what, m := range map[string][]specs.LinuxIDMapping{"user": in.UIDMappings, "group": in.GIDMappings} {
		if err := checkMappings(m, privileged); err != nil {
			return false, fmt.Errorf("container spec: %s id mappings: %w", what, err)
		}
	}
	return true, nil
}

// checkMappings reports what is wrong with the ranges of a map of ids.
func checkMappings(mappings []specs.LinuxIDMapping, privileged bool) error {
	if len(mappings) == 0 || len(mappings) > maxMappings {
		return fmt.Errorf("there are %d, a user namespace has 1 to %d", len(mappings), maxMappings)
	}
	for i, m := range mappings {
		inside, outside := idRange{m.ContainerID, m.Size}, idRange{m.HostID, m.Size}
		if !inside.valid() || !outside.valid() {
			return fmt.Errorf("range of %d ids from %d on %d is empty or goes beyond the last id", m.Size, m.ContainerID, m.HostID)
		}
		// Files of proc and sysfs belong to root of the guest: a container with that id might as well have no user
		// namespace, while its spec claims the contrary.
		if outside.first == 0 && !privileged {
			return fmt.Errorf("root of the guest (id 0) is mapped, which protects from nothing; %s", hint)
		}
		for _, other := range mappings[:i] {
			if inside.overlaps(idRange{other.ContainerID, other.Size}) || outside.overlaps(idRange{other.HostID, other.Size}) {
				return fmt.Errorf("range of %d ids from %d on %d overlaps with another", m.Size, m.ContainerID, m.HostID)
			}
		}
	}
	if !mapped(mappings, 0) { // the OCI runtime sets up the container as that
		return errors.New("root of the container (id 0) is not mapped")
	}
	return nil
}

// idRange is a range of user or group ids.
type idRange struct{ first, size uint32 }

func (r idRange) end() uint64 { return uint64(r.first) + uint64(r.size) }

// valid reports whether the range holds ids only: the last number of 32 bits is none.
func (r idRange) valid() bool { return r.size > 0 && r.end() <= math.MaxUint32 }

func (r idRange) overlaps(other idRange) bool {
	return uint64(r.first) < other.end() && uint64(other.first) < r.end()
}

// mapped reports whether an id of the container is mapped.
func mapped(mappings []specs.LinuxIDMapping, id uint32) bool {
	return slices.ContainsFunc(mappings, func(m specs.LinuxIDMapping) bool {
		return id >= m.ContainerID && uint64(id) < uint64(m.ContainerID)+uint64(m.Size)
	})
}

// sysMount shows the guest's /sys where the container cannot mount a sysfs itself. It is not recursive, so that it shows
// the cgroups of nobody else.
func sysMount(options []string, privileged bool) specs.Mount {
	access := "ro"
	if privileged && writable(options) {
		access = "rw"
	}
	return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"bind", access, "nosuid", "nodev", "noexec", "private"}}
}

// fitUserNamespace changes the mounts that a container with a user namespace cannot make as they are.
func fitUserNamespace(mounts []specs.Mount, gids []specs.LinuxIDMapping, privileged bool) {
	for i, m := range mounts {
		switch m.Type {
		case "sysfs":
			mounts[i] = sysMount(m.Options, privileged)
		case "devpts":
			mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool {
				var gid uint32
				_, err := fmt.Sscanf(o, "gid=%d", &gid)
				return strings.HasPrefix(o, "gid=") && (err != nil || !mapped(gids, gid)) // the kernel would refuse it
			})
		}
	}
}
