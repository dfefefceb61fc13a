// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is the guest as a whole: its clock, its random numbers and what it can do.
type Machine struct {
	// Guest says that the machine is the agent's own. A plain process of a build host does not set the clock of that.
	Guest bool
	// SysDir is where sysfs is mounted; empty means /sys.
	SysDir string
}

// errForeign is the answer where the machine is not the agent's.
var errForeign = errors.New("this agent is a plain process of a machine that is not its own guest")

// SetTime sets the clock, in seconds and microseconds since 1970.
func (m Machine) SetTime(sec, usec int64) error {
	if !m.Guest {
		return fmt.Errorf("set time: %w: %w", errForeign, unix.EPERM)
	}
	ts := unix.NsecToTimespec(0)
	ts.Sec, ts.Nsec = sec, usec*1000
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// Reseed mixes data into the kernel's random numbers and has it seed its generator anew. The data come from the host,
// so that they are not counted as entropy: they cannot make the numbers worse, and a host that knows them gains nothing.
func (Machine) Reseed(data []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("reseed random numbers: %w", err)
	}
	if _, err = f.Write(data); err == nil {
		err = unix.IoctlSetInt(int(f.Fd()), unix.RNDRESEEDCRNG, 0)
	}
	if errors.Is(err, unix.ENODATA) { // the generator has no seed yet: it will take the data with its first one
		err = nil
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("reseed random numbers: %w", err)
	}
	return nil
}

// MemoryBlock returns the size of a block of memory that can be plugged in, in bytes; 0 if none can.
func (m Machine) MemoryBlock() uint64 {
	data, err := os.ReadFile(m.memory("block_size_bytes"))
	if err != nil {
		return 0
	}
	size, err := strconv.ParseUint(strings.TrimSpace(string(data)), 16, 64) // the kernel writes it so
	if err != nil {
		return 0
	}
	return size
}

// MemoryProbe tells whether the kernel has to be told of memory that was plugged in.
func (m Machine) MemoryProbe() bool {
	_, err := os.Stat(m.memory("probe"))
	return err == nil
}

// HugePages returns the sizes of huge pages that the machine has, as the kernel names them in the files of its hugetlb
// controller: "2MB". It is never nil.
func (m Machine) HugePages() []string {
	sizes := []string{}
	entries, err := os.ReadDir(m.sys("kernel/mm/hugepages"))
	if err != nil { // a kernel without huge pages
		return sizes
	}
	for _, e := range entries {
		text := strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB")
		if kib, err := strconv.ParseUint(text, 10, 64); err == nil {
			sizes = append(sizes, pageSize(kib))
		}
	}
	return sizes
}

// pageSize writes a size as mm/hugetlb_cgroup.c of the kernel does.
func pageSize(kib uint64) string {
	switch {
	case kib >= 1<<20:
		return fmt.Sprintf("%dGB", kib>>20)
	case kib >= 1<<10:
		return fmt.Sprintf("%dMB", kib>>10)
	default:
		return fmt.Sprintf("%dKB", kib)
	}
}

func (m Machine) memory(name string) string { return m.sys("devices/system/memory/" + name) }

func (m Machine) sys(name string) string {
	dir := m.SysDir
	if dir == "" {
		dir = "/sys"
	}
	return filepath.Join(dir, name)
}
