// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"regexp"
)

// Stats are the counters of a group. A part whose controller the group does not have is nil (see Hierarchy.Stats).
type Stats struct {
	CPU    *CPU
	Memory *Memory
	Pids   *Pids
	// IO has six entries for each block device that the group has used: read and write in bytes, rios and wios as
	// numbers of requests, dbytes and dios for discards. Kata's agent reports them all as io_service_bytes_recursive.
	// It is nil without the io controller and empty without a device.
	IO []IOEntry
	// Hugetlb has huge pages by their size as the kernel spells it, such as "2MB"; nil without the hugetlb controller.
	Hugetlb map[string]Hugetlb
}

// CPU is processor time, in nanoseconds. The kernel counts it without the cpu controller too; the throttling
// is then zero.
type CPU struct {
	Usage, User, System       uint64
	Periods, ThrottledPeriods uint64
	ThrottledTime             uint64
}

// Memory is memory in bytes.
type Memory struct {
	// Usage is what memory.current and its companions say.
	Usage MemoryData
	// Swap is swap space alone; nil where the kernel does not count it.
	Swap *MemoryData
	// Cache is memory that caches files.
	Cache uint64
	// Stats is all of memory.stat.
	Stats map[string]uint64
}

// MemoryData is one kind of memory.
type MemoryData struct {
	Usage uint64
	// Max is the most that was ever in use; 0 where the kernel does not keep it (it does since 5.19, for swap since 6.5).
	Max uint64
	// Limit is math.MaxUint64 without a limit.
	Limit uint64
	// Failcnt is how often the limit was met.
	Failcnt uint64
}

// Pids is the number of processes and threads.
type Pids struct {
	Current uint64
	// Limit is 0 without a limit.
	Limit uint64
}

// IOEntry is one counter of one block device.
type IOEntry struct {
	Major, Minor uint64
	Op           string
	Value        uint64
}

// Hugetlb is the use of huge pages of one size, in bytes.
type Hugetlb struct {
	Usage uint64
	// Limit is math.MaxUint64 without a limit.
	Limit uint64
	// Failcnt is how often the limit was met.
	Failcnt uint64
}

// Stats reads the counters of a group. A controller that the group does not have gives a nil part and no error; what
// an older kernel does not count is zero. A group that is gone is an error that wraps fs.ErrNotExist.
func (h Hierarchy) Stats(path string) (*Stats, error) {
	group, err := h.open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = group.Close() }()
	r := reader{group: group}
	s := &Stats{CPU: r.cpu(), Memory: r.memory(), Pids: r.pids(), IO: r.io(), Hugetlb: r.hugetlb()}
	if r.err == nil {
		// In a group that was removed meanwhile every file is missing, which must not pass for a lack of controllers.
		_, r.err = readFile(group, "cgroup.events")
	}
	if r.err != nil {
		return nil, fmt.Errorf("read stats of cgroup %s: %w", path, r.err)
	}
	return s, nil
}

// reader reads files of a group until the first error.
type reader struct {
	group *os.Root
	err   error
}

// parse reads a file with a parser. It returns false if the file is missing or there is an error.
func parse[T any](r *reader, name string, into *T, parser func([]byte) (T, error)) bool {
	if r.err != nil {
		return false
	}
	data, err := readFile(r.group, name)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		r.err = err
		return false
	}
	if *into, err = parser(data); err != nil {
		r.err = fmt.Errorf("parse %s: %w", name, err)
		return false
	}
	return true
}

// number returns what a file of one number says, or otherwise if it is missing.
func (r *reader) number(name string, otherwise uint64) uint64 {
	n := otherwise
	if !parse(r, name, &n, parseNumber) {
		return otherwise
	}
	return n
}

// flat returns a flat keyed file, nil if it is missing.
func (r *reader) flat(name string) map[string]uint64 {
	var values map[string]uint64
	parse(r, name, &values, parseFlat)
	return values
}

func (r *reader) cpu() *CPU {
	var cpu *CPU
	parse(r, "cpu.stat", &cpu, parseCPU)
	return cpu
}

func (r *reader) memory() *Memory {
	var m Memory
	if !parse(r, "memory.current", &m.Usage.Usage, parseNumber) {
		return nil
	}
	m.Usage.Max = r.number("memory.peak", 0)
	m.Usage.Limit = r.number("memory.max", math.MaxUint64)
	m.Usage.Failcnt = r.flat("memory.events")["max"]
	m.Stats = r.flat("memory.stat")
	m.Cache = m.Stats["file"]
	var swap MemoryData
	if parse(r, "memory.swap.current", &swap.Usage, parseNumber) {
		swap.Max = r.number("memory.swap.peak", 0)
		swap.Limit = r.number("memory.swap.max", math.MaxUint64)
		swap.Failcnt = r.flat("memory.swap.events")["max"]
		m.Swap = &swap
	}
	return &m
}

func (r *reader) pids() *Pids {
	var p Pids
	if !parse(r, "pids.current", &p.Current, parseNumber) {
		return nil
	}
	if p.Limit = r.number("pids.max", math.MaxUint64); p.Limit == math.MaxUint64 {
		p.Limit = 0
	}
	return &p
}

func (r *reader) io() []IOEntry {
	var entries []IOEntry
	if parse(r, "io.stat", &entries, parseIO) && entries == nil {
		entries = []IOEntry{}
	}
	return entries
}

// hugetlb finds the sizes of huge pages by the names of the files. Those of reservations have a further part.
func (r *reader) hugetlb() map[string]Hugetlb {
	if r.err != nil {
		return nil
	}
	names, err := list(r.group, ".", func(e fs.DirEntry) bool { return !e.IsDir() })
	if err != nil {
		r.err = err
		return nil
	}
	usage := regexp.MustCompile(`^hugetlb\.([0-9]{1,9}[KMG]B)\.current$`)
	var sizes map[string]Hugetlb
	for _, name := range names {
		match := usage.FindStringSubmatch(name)
		if match == nil {
			continue
		}
		var u Hugetlb
		if !parse(r, name, &u.Usage, parseNumber) {
			continue
		}
		u.Limit = r.number("hugetlb."+match[1]+".max", math.MaxUint64)
		u.Failcnt = r.flat("hugetlb." + match[1] + ".events")["max"]
		if sizes == nil {
			sizes = map[string]Hugetlb{}
		}
		sizes[match[1]] = u
	}
	return sizes
}
