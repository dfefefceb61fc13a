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

const (
	// maxHugepageLimits bounds the limits of huge pages: no architecture has more sizes of them.
	maxHugepageLimits = 16
	// maxUnified bounds the cgroup files that a spec names.
	maxUnified = 128
	// minShares and maxShares are the kernel's bounds of CPU shares. It clamps what is outside, and so does this package:
	// OCI runtimes compute a weight of it that the kernel would refuse.
	minShares, maxShares = 2, 262144
)

var (
	unifiedKey   = regexp.MustCompile(`^[a-z0-9_]+(\.[a-zA-Z0-9_]+)+$`)
	hugepageSize = regexp.MustCompile(`^[1-9][0-9]{0,9}[KMG]B$`)
)

// Resources checks the limits for a running container, and returns what is to be set of them, and notes on what is
// left out, as Convert does. Devices are never among it: a container keeps its device rules.
func Resources(in *specs.LinuxResources, o Options) (*specs.LinuxResources, []string, error) {
	var n notes
	out, err := convertResources(in, o, &n)
	return out, n, err
}

// convertResources takes over limits of memory, CPU time, number of processes and huge pages. CPU and memory nodes name
// those of the host and are left out, and so are what cgroup v2 does not have, block I/O and network classes, and limits
// whose controller the guest does not have. Device rules are none of its business.
func convertResources(in *specs.LinuxResources, o Options, n *notes) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if in == nil {
		return out, nil
	}
	var err error
	if out.Memory, err = convertMemory(in.Memory, n); err != nil {
		return nil, fmt.Errorf("container spec: memory: %w", err)
	}
	if out.CPU, err = convertCPU(in.CPU, n); err != nil {
		return nil, fmt.Errorf("container spec: CPU: %w", err)
	}
	if in.Pids != nil {
		out.Pids = &specs.LinuxPids{Limit: in.Pids.Limit}
	}
	if out.HugepageLimits, err = convertHugepages(in.HugepageLimits, o, n); err != nil {
		return nil, fmt.Errorf("container spec: %w", err)
	}
	if out.Unified, err = convertUnified(in.Unified, o, n); err != nil {
		return nil, fmt.Errorf("container spec: %w", err)
	}
	if in.BlockIO != nil {
		n.add("block I/O limits left out: their devices are those of the host")
	}
	if in.Network != nil {
		n.add("network class left out: cgroup v2 has none")
	}
	if len(in.Rdma) > 0 {
		n.add("RDMA limits left out: their devices are those of the host")
	}
	dropMissing(out, o, n)
	return out, nil
}

// dropMissing takes out the limits whose controller is not there.
func dropMissing(r *specs.LinuxResources, o Options, n *notes) {
	missing := func(given bool, controller string) bool {
		if !given || hasController(o, controller) {
			return false
		}
		n.add("%s limit not available: there is no cgroup controller %s", controller, controller)
		return true
	}
	if missing(r.Memory != nil, "memory") {
		r.Memory = nil
	}
	if missing(r.CPU != nil, "cpu") {
		r.CPU = nil
	}
	if missing(r.Pids != nil, "pids") {
		r.Pids = nil
	}
	if missing(len(r.HugepageLimits) > 0, "hugetlb") {
		r.HugepageLimits = nil
	}
}

func hasController(o Options, name string) bool {
	return o.Controllers == nil || slices.Contains(o.Controllers, name)
}

func convertMemory(in *specs.LinuxMemory, n *notes) (*specs.LinuxMemory, error) {
	if in == nil {
		return nil, nil //nolint:nilnil // no limits are a value of the spec
	}
	for what, v := range map[string]*int64{"limit": in.Limit, "reservation": in.Reservation, "swap": in.Swap} {
		if v != nil && *v < -1 {
			return nil, fmt.Errorf("%s %d is less than -1, which means unlimited", what, *v)
		}
	}
	out := &specs.LinuxMemory{Limit: in.Limit, Reservation: in.Reservation, Swap: in.Swap}
	if in.Swap != nil && *in.Swap > 0 { // it counts memory and swap together
		switch {
		case in.Limit == nil:
			n.add("swap limit left out: it says nothing without a memory limit")
			out.Swap = nil
		case *in.Limit == -1 || *in.Swap < *in.Limit:
			return nil, fmt.Errorf("swap %d, which includes memory, is less than the memory limit %d", *in.Swap, *in.Limit)
		}
	}
	if in.Swappiness != nil || in.DisableOOMKiller != nil && *in.DisableOOMKiller || in.KernelTCP != nil {
		n.add("memory swappiness, OOM killer and TCP settings left out: cgroup v2 has none")
	}
	return out, nil
}

func convertCPU(in *specs.LinuxCPU, n *notes) (*specs.LinuxCPU, error) {
	if in == nil {
		return nil, nil //nolint:nilnil // no limits are a value of the spec
	}
	if in.Cpus != "" || in.Mems != "" {
		n.add("CPU set left out: its CPUs and memory nodes are those of the host")
	}
	if in.RealtimePeriod != nil || in.RealtimeRuntime != nil {
		n.add("realtime CPU time left out: cgroup v2 has none")
	}
	if in.Quota != nil && *in.Quota < -1 {
		return nil, fmt.Errorf("quota %d is less than -1, which means unlimited", *in.Quota)
	}
	if p := in.Period; p != nil && *p != 0 && (*p < 1000 || *p > 1000000) {
		return nil, fmt.Errorf("period of %d µs is not between 1000 and 1000000", *p)
	}
	if in.Idle != nil && *in.Idle != 0 && *in.Idle != 1 {
		return nil, fmt.Errorf("idle %d is neither 0 nor 1", *in.Idle)
	}
	out := &specs.LinuxCPU{Shares: in.Shares, Quota: in.Quota, Burst: in.Burst, Period: in.Period, Idle: in.Idle}
	if s := in.Shares; s != nil && *s != 0 {
		out.Shares = new(min(max(*s, minShares), maxShares))
	}
	return out, nil
}

// convertHugepages leaves out sizes that the guest does not have: a limit on them holds anyway, and the OCI runtime
// would fail to set it.
func convertHugepages(in []specs.LinuxHugepageLimit, o Options, n *notes) ([]specs.LinuxHugepageLimit, error) {
	if len(in) > maxHugepageLimits {
		return nil, fmt.Errorf("%d limits of huge pages, at most %d are offered", len(in), maxHugepageLimits)
	}
	var out []specs.LinuxHugepageLimit
	for _, h := range in {
		if !hugepageSize.MatchString(h.Pagesize) {
			return nil, fmt.Errorf("huge page size %q is malformed", h.Pagesize)
		}
		if o.HugePages != nil && !slices.Contains(o.HugePages, h.Pagesize) {
			n.add("limit of huge pages of %s left out: the guest has none", h.Pagesize)
			continue
		}
		out = append(out, h)
	}
	return out, nil
}

func convertUnified(in map[string]string, o Options, n *notes) (map[string]string, error) {
	if len(in) > maxUnified {
		return nil, fmt.Errorf("%d cgroup files, at most %d are offered", len(in), maxUnified)
	}
	var out map[string]string
	for _, key := range slices.Sorted(maps.Keys(in)) {
		value := in[key]
		if !unifiedKey.MatchString(key) || strings.HasPrefix(key, "cgroup.") {
			return nil, fmt.Errorf("cgroup file %q is malformed or not offered", key)
		}
		if len(value) > 4096 || strings.ContainsRune(value, 0) {
			return nil, fmt.Errorf("value of cgroup file %q is longer than 4096 bytes or has a zero byte", key)
		}
		if controller, _, _ := strings.Cut(key, "."); !hasController(o, controller) {
			n.add("cgroup file %s not available: there is no cgroup controller %s", key, controller)
			continue
		}
		put(&out, key, value)
	}
	return out, nil
}
