// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/rpc/pb"
)

// statsToPB translates a container's statistics. The wire was made for cgroup v1: what cgroup v2 does not have stays 0,
// and the counters of block devices all go into one list, told apart by their op, as Kata's own agent has it.
func statsToPB(in *cgroup.Stats) *pb.CgroupStats {
	out := &pb.CgroupStats{}
	if c := in.CPU; c != nil {
		out.CpuStats = &pb.CpuStats{
			CpuUsage:       &pb.CpuUsage{TotalUsage: c.Usage, UsageInUsermode: c.User, UsageInKernelmode: c.System},
			ThrottlingData: &pb.ThrottlingData{Periods: c.Periods, ThrottledPeriods: c.ThrottledPeriods, ThrottledTime: c.ThrottledTime},
		}
	}
	if m := in.Memory; m != nil {
		out.MemoryStats = &pb.MemoryStats{Cache: m.Cache, Usage: memoryToPB(m.Usage), UseHierarchy: true, Stats: m.Stats}
		if m.Swap != nil {
			out.MemoryStats.SwapUsage = memoryToPB(*m.Swap)
		}
	}
	if p := in.Pids; p != nil {
		out.PidsStats = &pb.PidsStats{Current: p.Current, Limit: p.Limit}
	}
	if in.IO != nil {
		out.BlkioStats = &pb.BlkioStats{IoServiceBytesRecursive: convert(in.IO, func(e cgroup.IOEntry) *pb.BlkioStatsEntry {
			return &pb.BlkioStatsEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value}
		})}
	}
	for size, h := range in.Hugetlb {
		put(&out.HugetlbStats, size, &pb.HugetlbStats{Usage: h.Usage, Failcnt: h.Failcnt})
	}
	return out
}

func memoryToPB(m cgroup.MemoryData) *pb.MemoryData {
	return &pb.MemoryData{Usage: m.Usage, MaxUsage: m.Max, Failcnt: m.Failcnt, Limit: m.Limit}
}

func put[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = make(map[string]V)
	}
	(*m)[key] = value
}
