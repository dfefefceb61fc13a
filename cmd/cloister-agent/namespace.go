// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/storage/mount"
)

// formerNamespace is the environment variable by which a plain process that has made its mount namespace tells itself
// which one it comes from.
const formerNamespace = "CLOISTER_FORMER_MOUNT_NAMESPACE"

// ownMountNamespace puts the process into a mount namespace of its own: what an agent mounts, on /etc/resolv.conf for
// instance, is not the machine's. A Go program has threads that would stay behind, so it starts itself anew.
func ownMountNamespace() error {
	current, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("find the mount namespace: %w", err)
	}
	if former := os.Getenv(formerNamespace); former != "" && former != current {
		return os.Unsetenv(formerNamespace) // containers' runtimes get the environment
	}
	runtime.LockOSThread() // and never unlocked: it becomes the new program
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	// One by one, since the root of a chroot is no mount point that could be changed together with all below it.
	info, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	mounts, err := mountinfo.GetMountsFromReader(info, nil)
	if err := errors.Join(err, info.Close()); err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for _, m := range mounts {
		err := unix.Mount("", m.Mountpoint, "", unix.MS_PRIVATE, "")
		// What is mounted over by another cannot be reached, and need not be.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("keep mounts on %s private: %w", m.Mountpoint, err)
		}
	}
	if err := os.Setenv(formerNamespace, current); err != nil {
		return err
	}
	return fmt.Errorf("start anew: %w", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// makeFolders makes the agent's folders in memory of their own, which end with its mount namespace. Those of the shim
// have the same names, and are left alone even if both run on one machine.
func makeFolders() error {
	for _, dir := range []string{unsealedDir, agent.DefaultRunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := mount.Mount("tmpfs", dir, "tmpfs", []string{"nosuid", "nodev", "mode=0755", "size=50%"}); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	return os.MkdirAll(filepath.Join(unsealedDir, "img"), 0o700)
}

const cgroupDir = "/sys/fs/cgroup"

// findCgroups returns the control groups of version 2. On a machine that uses version 1, they are mounted for the agent
// alone, with what controllers are left. nil means that containers run without any.
func findCgroups(log *slog.Logger) *cgroup.Hierarchy {
	h := &cgroup.Hierarchy{}
	v2, err := h.IsV2()
	if err == nil && !v2 {
		err = mount.Mount("cgroup2", cgroupDir, "cgroup2", []string{"nosuid", "nodev", "noexec"})
	}
	if err == nil {
		err = tryCgroup()
	}
	if err != nil {
		log.Warn("containers have no control groups: statistics, limits and pausing are not available", "error", err)
		return nil
	}
	if controllers, err := h.Controllers(); err == nil {
		log.Info("control groups", "controllers", controllers)
	}
	return h
}

// tryCgroup finds out whether control groups can be made.
func tryCgroup() error {
	dir, err := os.MkdirTemp(cgroupDir, "cloister-probe-")
	if err != nil {
		return err
	}
	return unix.Rmdir(dir)
}
