// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/procfs"
)

// agent sends the families kata_agent_*, which are about the agent's own process.
func (c *procCollector) agent(e emitter) {
	p, err := c.fs.Proc(c.pid)
	if err != nil {
		return
	}
	if stat, err := p.Stat(); err == nil {
		agentStat(e, stat)
	}
	if status, err := p.NewStatus(); err == nil {
		e.items("kata_agent_proc_status", "Memory in KiB and context switches of the agent's process.", nil, nil, statusItems(status))
	}
	if io, err := p.IO(); err == nil {
		e.items("kata_agent_io_stat", "Input and output of the agent's process.", nil, nil, []item{
			{"rchar", float64(io.RChar)},
			{"wchar", float64(io.WChar)},
			{"syscr", float64(io.SyscR)},
			{"syscw", float64(io.SyscW)},
			{"read_bytes", float64(io.ReadBytes)},
			{"write_bytes", float64(io.WriteBytes)},
			{"cancelled_write_bytes", float64(io.CancelledWriteBytes)},
		})
	}
	if n, err := p.FileDescriptorsLen(); err == nil {
		e.gauge("kata_agent_process_open_fds", "Open file descriptors of the agent's process.", float64(n))
	}
	if limits, err := p.Limits(); err == nil {
		e.gauge("kata_agent_process_max_fds", "Limit of open file descriptors of the agent's process.", float64(limits.OpenFiles))
	}
}

func agentStat(e emitter, stat procfs.ProcStat) {
	e.gauge("kata_agent_threads", "Threads of the agent's process.", float64(stat.NumThreads))
	e.gauge("kata_agent_total_time", "User and system time of the agent's process in seconds.", stat.CPUTime())
	e.gauge("kata_agent_total_vm", "Virtual memory of the agent's process in bytes.", float64(stat.VirtualMemory()))
	e.gauge("kata_agent_total_rss", "Resident memory of the agent's process in bytes.", float64(stat.ResidentMemory()))
	e.items("kata_agent_proc_stat", "Times of the agent's process and of its children in clock ticks.", nil, nil, []item{
		{"utime", float64(stat.UTime)},
		{"stime", float64(stat.STime)},
		{"cutime", float64(stat.CUTime)},
		{"cstime", float64(stat.CSTime)},
	})
	e.send(prometheus.CounterValue, "kata_agent_process_cpu_seconds_total",
		"User and system time of the agent's process in seconds.", nil, nil, stat.CPUTime())
	e.gauge("kata_agent_process_virtual_memory_bytes", "Virtual memory of the agent's process in bytes.",
		float64(stat.VirtualMemory()))
	e.gauge("kata_agent_process_resident_memory_bytes", "Resident memory of the agent's process in bytes.",
		float64(stat.ResidentMemory()))
	if start, err := stat.StartTime(); err == nil {
		e.gauge("kata_agent_process_start_time_seconds", "Start of the agent's process in seconds since the epoch.", start)
	}
}

// statusItems has memory in KiB, as the kernel writes it; procfs converts it to bytes.
func statusItems(s procfs.ProcStatus) []item {
	kib := func(bytes uint64) float64 { return float64(bytes / 1024) }
	return []item{
		{"vmpeak", kib(s.VmPeak)},
		{"vmsize", kib(s.VmSize)},
		{"vmlck", kib(s.VmLck)},
		{"vmpin", kib(s.VmPin)},
		{"vmhwm", kib(s.VmHWM)},
		{"vmrss", kib(s.VmRSS)},
		{"rssanon", kib(s.RssAnon)},
		{"rssfile", kib(s.RssFile)},
		{"rssshmem", kib(s.RssShmem)},
		{"vmdata", kib(s.VmData)},
		{"vmstk", kib(s.VmStk)},
		{"vmexe", kib(s.VmExe)},
		{"vmlib", kib(s.VmLib)},
		{"vmpte", kib(s.VmPTE)},
		{"vmswap", kib(s.VmSwap)},
		{"hugetlbpages", kib(s.HugetlbPages)},
		{"voluntary_ctxt_switches", float64(s.VoluntaryCtxtSwitches)},
		{"nonvoluntary_ctxt_switches", float64(s.NonVoluntaryCtxtSwitches)},
	}
}
