// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package mount mounts file systems by mount(2). It is a leaf: everything else may use it, and it knows nothing of what
// is mounted. What is to be done is planned first (a list of system calls, see plan) and then carried out.
//
// No function here resolves paths in a special way: a target below a folder that somebody hostile writes to must be
// resolved by the caller, and handed over as /proc/self/fd/N.
package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount mounts source on target. Options are those of mount(8): words that name a flag (ro, nosuid, bind, rprivate …)
// and data for the file system (mode=755). ro and its like together with bind take a second system call, and
// propagation (private, rslave …) one of its own; if a later one fails, the mount is undone.
func Mount(source, target, fstype string, options []string) error {
	calls, err := plan(source, target, fstype, options)
	if err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	if err := apply(calls); err != nil {
		return fmt.Errorf("mount %s on %s: %w", describe(source, fstype), target, err)
	}
	return nil
}

// apply makes the calls of a plan. If one fails, the mount that the first has made is undone.
func apply(calls []call) error {
	for i, c := range calls {
		if err := unix.Mount(c.source, c.target, c.fstype, c.flags, c.data); err != nil {
			err = os.NewSyscallError("mount", err)
			if i > 0 && calls[0].makes() {
				err = errors.Join(err, Detach(c.target))
			}
			return err
		}
	}
	return nil
}

// Overlay mounts an overlay file system on target. The first of lower is the uppermost layer. With upper and work empty
// the overlay is read-only; the kernel wants two layers then. The paths together may have about 4000 bytes.
func Overlay(target string, lower []string, upper, work string) error {
	data, err := overlayData(lower, upper, work)
	if err != nil {
		return fmt.Errorf("mount overlay on %s: %w", target, err)
	}
	flags := uintptr(0)
	if upper == "" {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", target, "overlay", flags, data); err != nil {
		return fmt.Errorf("mount overlay on %s: %w", target, os.NewSyscallError("mount", err))
	}
	return nil
}

// Unmount unmounts what is mounted on target. It fails while files there are in use.
func Unmount(target string) error {
	return unmount(target, unix.UMOUNT_NOFOLLOW)
}

// Detach takes the mount on target out of the tree at once; it ends when the last file there is closed.
func Detach(target string) error {
	return unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
}

func unmount(target string, flags int) error {
	if err := unix.Unmount(target, flags); err != nil {
		return fmt.Errorf("unmount %s: %w", target, os.NewSyscallError("umount2", err))
	}
	return nil
}

// describe names what is mounted for an error.
func describe(source, fstype string) string {
	if fstype == "" || source == fstype {
		return source
	}
	return strings.TrimSpace(fstype + " " + source)
}
