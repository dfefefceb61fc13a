// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package metrics

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"
)

const (
	// maxDevices bounds the CPUs, disks, interfaces each.
	maxDevices = 256
	// maxProcFile bounds what is read of a proc file, in bytes.
	maxProcFile = 64 << 10
	// maxVMStat bounds the lines of /proc/vmstat; Linux 6.18 has about 200.
	maxVMStat = 512
)

// guest sends the families kata_guest_*, which are about the guest as a whole.
func (c *procCollector) guest(e emitter) {
	if load, err := c.fs.LoadAvg(); err == nil {
		e.items("kata_guest_load", "Load of the guest over 1, 5 and 15 minutes.", nil, nil, []item{
			{"load1", load.Load1}, {"load5", load.Load5}, {"load15", load.Load15},
		})
	}
	if cur, all, err := c.tasks(); err == nil {
		e.items("kata_guest_tasks", "Runnable tasks and all tasks of the guest.", nil, nil, []item{{"cur", cur}, {"max", all}})
	}
	if vm, err := c.vmstat(); err == nil {
		e.items("kata_guest_vm_stat", "Virtual memory of the guest, see /proc/vmstat.", nil, nil, vm)
	}
	if mem, err := c.fs.Meminfo(); err == nil {
		e.items("kata_guest_meminfo", "Memory of the guest in bytes, see /proc/meminfo.", nil, nil, meminfoItems(mem))
	}
	c.cpus(e)
	c.disks(e)
	c.interfaces(e)
}

func (c *procCollector) cpus(e emitter) {
	stat, err := c.fs.Stat()
	if err != nil {
		return
	}
	const name, help = "kata_guest_cpu_time", "Time of the guest's processors in milliseconds, see /proc/stat."
	e.items(name, help, []string{"cpu"}, []string{"total"}, cpuItems(stat.CPUTotal))
	cpus := make([]int64, 0, len(stat.CPU))
	for cpu := range stat.CPU {
		cpus = append(cpus, cpu)
	}
	slices.Sort(cpus)
	for _, cpu := range cpus[:min(maxDevices, len(cpus))] {
		e.items(name, help, []string{"cpu"}, []string{strconv.FormatInt(cpu, 10)}, cpuItems(stat.CPU[cpu]))
	}
}

func cpuItems(s procfs.CPUStat) []item {
	ms := func(seconds float64) float64 { return math.Round(seconds * 1000) }
	return []item{
		{"user", ms(s.User)},
		{"nice", ms(s.Nice)},
		{"system", ms(s.System)},
		{"idle", ms(s.Idle)},
		{"iowait", ms(s.Iowait)},
		{"irq", ms(s.IRQ)},
		{"softirq", ms(s.SoftIRQ)},
		{"steal", ms(s.Steal)},
		{"guest", ms(s.Guest)},
		{"guest_nice", ms(s.GuestNice)},
	}
}

func (c *procCollector) disks(e emitter) {
	fs, err := blockdevice.NewFS(c.root, c.root) // the second is sysfs, which nothing is read of
	if err != nil {
		return
	}
	disks, err := fs.ProcDiskstats()
	if err != nil {
		return
	}
	for _, d := range disks[:min(maxDevices, len(disks))] {
		items := []item{
			{"reads", float64(d.ReadIOs)},
			{"merged", float64(d.ReadMerges)},
			{"sectors_read", float64(d.ReadSectors)},
			{"time_reading", float64(d.ReadTicks)},
			{"writes", float64(d.WriteIOs)},
			{"writes_merged", float64(d.WriteMerges)},
			{"sectors_written", float64(d.WriteSectors)},
			{"time_writing", float64(d.WriteTicks)},
			{"in_progress", float64(d.IOsInProgress)},
			{"time_in_progress", float64(d.IOsTotalTicks)},
			{"weighted_time_in_progress", float64(d.WeightedIOTicks)},
			{"discards", float64(d.DiscardIOs)},
			{"discards_merged", float64(d.DiscardMerges)},
			{"sectors_discarded", float64(d.DiscardSectors)},
			{"time_discarding", float64(d.DiscardTicks)},
			{"flushes", float64(d.FlushRequestsCompleted)},
			{"time_flushing", float64(d.TimeSpentFlushing)},
		}
		e.items("kata_guest_diskstat", "Input and output of the guest's disks, see /proc/diskstats.",
			[]string{"disk"}, []string{d.DeviceName}, items)
	}
}

func (c *procCollector) interfaces(e emitter) {
	devs, err := c.fs.NetDev()
	if err != nil {
		return
	}
	for _, name := range first(devs, maxDevices) {
		d := devs[name]
		items := []item{
			{"recv_bytes", float64(d.RxBytes)},
			{"recv_packets", float64(d.RxPackets)},
			{"recv_errs", float64(d.RxErrors)},
			{"recv_drop", float64(d.RxDropped)},
			{"recv_fifo", float64(d.RxFIFO)},
			{"recv_frame", float64(d.RxFrame)},
			{"recv_compressed", float64(d.RxCompressed)},
			{"recv_multicast", float64(d.RxMulticast)},
			{"sent_bytes", float64(d.TxBytes)},
			{"sent_packets", float64(d.TxPackets)},
			{"sent_errs", float64(d.TxErrors)},
			{"sent_drop", float64(d.TxDropped)},
			{"sent_fifo", float64(d.TxFIFO)},
			{"sent_colls", float64(d.TxCollisions)},
			{"sent_carrier", float64(d.TxCarrier)},
			{"sent_compressed", float64(d.TxCompressed)},
		}
		e.items("kata_guest_netdev_stat", "Traffic of the guest's network interfaces, see /proc/net/dev.",
			[]string{"interface"}, []string{name}, items)
	}
}

// read reads a proc file that procfs has no reader for.
func (c *procCollector) read(name string) (string, error) {
	f, err := os.Open(filepath.Join(c.root, name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProcFile))
	return string(b), err
}

// tasks reads the numbers of runnable and of all tasks from /proc/loadavg, proc_loadavg(5).
func (c *procCollector) tasks() (cur, all float64, err error) {
	text, err := c.read("loadavg")
	if err != nil {
		return 0, 0, err
	}
	fields := strings.Fields(text)
	if len(fields) < 4 {
		return 0, 0, errors.New("parse loadavg: too few fields")
	}
	a, b, _ := strings.Cut(fields[3], "/")
	if cur, err = strconv.ParseFloat(a, 64); err != nil {
		return 0, 0, fmt.Errorf("parse loadavg: %w", err)
	}
	if all, err = strconv.ParseFloat(b, 64); err != nil {
		return 0, 0, fmt.Errorf("parse loadavg: %w", err)
	}
	return cur, all, nil
}

// vmstat reads /proc/vmstat: a name and a number a line, proc_vmstat(5).
func (c *procCollector) vmstat() ([]item, error) {
	text, err := c.read("vmstat")
	if err != nil {
		return nil, err
	}
	var items []item
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan() && len(items) < maxVMStat; {
		name, number, ok := strings.Cut(lines.Text(), " ")
		v, err := strconv.ParseFloat(number, 64)
		if !ok || err != nil {
			return nil, fmt.Errorf("parse vmstat: line %d is no name and number", len(items)+1)
		}
		items = append(items, item{name, v})
	}
	return items, nil
}
