// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxDevices bounds the devices of a container, and the device rules of a spec.
const maxDevices = 1024

// Kernel limits of device numbers, linux/kdev_t.h.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

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

// convertDevices returns the devices that the OCI runtime is to make, and the device rules. Default devices are left out of
// the former, since the OCI runtime makes them by itself and must not meet them twice.
//
// A privileged container may use every device. The shim takes the rule that says so out of the spec, so that it is also
// known by CAP_SYS_ADMIN, with which it could lift the rules anyway.
func convertDevices(in *specs.Linux, privileged bool, capabilities *specs.LinuxCapabilities) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	var given []specs.LinuxDeviceCgroup
	if in.Resources != nil {
		given = in.Resources.Devices
	}
	if len(in.Devices) > maxDevices || len(given) > maxDevices {
		return nil, nil, fmt.Errorf("container spec: %d devices and %d device rules, at most %d are offered", len(in.Devices), len(given), maxDevices)
	}
	rules := deviceRules()
	admin := capabilities != nil && slices.Contains(capabilities.Bounding, "CAP_SYS_ADMIN")
	if privileged && (admin || allowsAll(given)) {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
	}
	var out []specs.LinuxDevice
	for _, d := range in.Devices {
		if slices.Contains(defaultDevices, device{d.Path, d.Type, d.Major, d.Minor}) {
			continue
		}
		if !privileged {
			return nil, nil, fmt.Errorf("container spec: device %q (%s %d:%d) is not offered, only the default ones are; %s",
				d.Path, d.Type, d.Major, d.Minor, hint)
		}
		if err := checkDevice(d, out); err != nil {
			return nil, nil, fmt.Errorf("container spec: device %q: %w", d.Path, err)
		}
		made := specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, UID: d.UID, GID: d.GID}
		if d.FileMode != nil { // the kernel's bits for the type come with it at times
			made.FileMode = new(*d.FileMode & 0o777)
		}
		out = append(out, made)
		if d.Type != "p" {
			rules = append(rules, specs.LinuxDeviceCgroup{
				Allow: true, Type: ruleType(d.Type), Major: new(d.Major), Minor: new(d.Minor), Access: access(d, given),
			})
		}
	}
	return out, rules, nil
}

// checkDevice reports what is wrong with a device; before are those that came before it.
func checkDevice(d specs.LinuxDevice, before []specs.LinuxDevice) error {
	if err := checkPath(d.Path); err != nil {
		return err
	}
	taken := slices.ContainsFunc(defaultDevices, func(def device) bool { return def.path == d.Path }) ||
		slices.ContainsFunc(before, func(other specs.LinuxDevice) bool { return other.Path == d.Path })
	switch {
	case d.Path == "/" || taken:
		return errors.New("the path is given twice, or taken by a default device")
	case !slices.Contains([]string{"b", "c", "u", "p"}, d.Type):
		return fmt.Errorf("type %q is none of b, c, u and p", d.Type)
	case d.Major < 0 || d.Major > maxMajor || d.Minor < 0 || d.Minor > maxMinor:
		return fmt.Errorf("there is no device %d:%d", d.Major, d.Minor)
	}
	return nil
}

// ruleType is the device cgroup's word for a type: an unbuffered character device is a character device.
func ruleType(kind string) string {
	if kind == "u" {
		return "c"
	}
	return kind
}

// allowsAll reports whether the last of the rules for every device allows all of it.
func allowsAll(rules []specs.LinuxDeviceCgroup) bool {
	all := false
	for _, r := range rules {
		if (r.Type == "" || r.Type == "a") && wild(r.Major) && wild(r.Minor) {
			all = r.Allow && accessBits(r.Access) == "rwm"
		}
	}
	return all
}

func wild(n *int64) bool { return n == nil || *n == -1 }

// access is what a device may be used for: what the spec's rules for exactly this device allow, or everything.
func access(d specs.LinuxDevice, rules []specs.LinuxDeviceCgroup) string {
	for _, r := range slices.Backward(rules) {
		if r.Allow && r.Type == ruleType(d.Type) && r.Major != nil && *r.Major == d.Major && r.Minor != nil && *r.Minor == d.Minor {
			if bits := accessBits(r.Access); bits != "" {
				return bits
			}
		}
	}
	return "rwm"
}

// accessBits reduces an access to the letters that mean something, in their usual order.
func accessBits(access string) string {
	var bits strings.Builder
	for _, c := range "rwm" {
		if strings.ContainsRune(access, c) {
			bits.WriteRune(c)
		}
	}
	return bits.String()
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
