// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// newRoot is where the root file system is mounted before it becomes /.
const newRoot = "/cloister/newroot"

// mountPoint is one mount of the plan.
type mountPoint struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

const guarded = unix.MS_NOSUID | unix.MS_NODEV

// pseudoMounts are the file systems that everything else needs, in order. /run may hold executables (the OCI
// runtime), and cgroup2 is mounted alone: the runtime refuses a hybrid hierarchy.
func pseudoMounts() []mountPoint {
	return []mountPoint{
		{"proc", "/proc", "proc", guarded | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", guarded | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"},
		{"shm", "/dev/shm", "tmpfs", guarded | unix.MS_NOEXEC, "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", guarded | unix.MS_NOEXEC, ""},
		{"run", "/run", "tmpfs", guarded, "mode=0755"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", guarded | unix.MS_NOEXEC, "nsdelegate"},
	}
}

// scratchMounts are the tmpfs for images and containers. It allows set-uid files: images hold them, and only
// containers see them.
func scratchMounts() []mountPoint {
	return []mountPoint{{"scratch", ScratchDir, "tmpfs", unix.MS_NODEV, "mode=0700,size=50%"}}
}

// lateMounts come after the move to the read-only root file system.
func lateMounts() []mountPoint {
	return []mountPoint{{"tmp", "/tmp", "tmpfs", guarded, "mode=1777"}}
}

func (b *booter) mounts(context.Context) error { return apply(pseudoMounts()) }

func apply(plan []mountPoint) error {
	for _, m := range plan {
		if err := os.MkdirAll(m.target, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
		if errors.Is(err, unix.EBUSY) && m.fstype == "devtmpfs" {
			continue // CONFIG_DEVTMPFS_MOUNT: the kernel was quicker
		}
		if err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	return nil
}

func mountRoot(device string) error {
	if err := unix.Mount(device, newRoot, "erofs", unix.MS_RDONLY|guarded, ""); err != nil {
		return fmt.Errorf("mount the root file system: %w (its content is damaged, or was not made by cloister build)", err)
	}
	return nil
}
