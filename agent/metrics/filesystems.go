// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package metrics

import (
	"path"

	"golang.org/x/sys/unix"
)

// maxMounts bounds the file systems that are reported.
const maxMounts = 64

// filesystems sends the usage of the writable file systems, each device once.
func (c *procCollector) filesystems(e emitter) {
	p, err := c.fs.Proc(c.pid)
	if err != nil {
		return
	}
	mounts, err := p.MountInfo()
	if err != nil {
		return
	}
	devices := map[string]bool{}
	for _, m := range mounts {
		_, readOnly := m.SuperOptions["ro"]
		if readOnly || !onDisk(m.FSType) || devices[m.MajorMinorVer] || len(devices) == maxMounts {
			continue
		}
		devices[m.MajorMinorVer] = true
		var s unix.Statfs_t
		if err := c.statfs(m.MountPoint, &s); err != nil {
			continue
		}
		labels, values := []string{"mount", "device"}, []string{m.MountPoint, path.Base(m.Source)}
		e.items("kata_guest_filesystem_bytes", "Space of the guest's file systems in bytes.", labels, values,
			usage(s.Blocks, s.Bfree, float64(s.Bsize)))
		e.items("kata_guest_filesystem_inodes", "Inodes of the guest's file systems.", labels, values,
			usage(s.Files, s.Ffree, 1))
	}
}

// onDisk reports whether a file system is of a kind whose usage tells something and whose statfs(2) asks no other
// machine, which could let the caller wait for ever.
func onDisk(fsType string) bool {
	switch fsType {
	case "ext4", "xfs", "btrfs", "vfat", "overlay":
		return true
	default:
		return false
	}
}

func usage(total, free uint64, unit float64) []item {
	used := total - min(free, total)
	return []item{{"total", float64(total) * unit}, {"used", float64(used) * unit}, {"available", float64(free) * unit}}
}
