// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Linux changes the kernel that the agent runs on. It needs root. The zero value is ready for use.
type Linux struct {
	// SysctlDir is the folder of kernel parameters; empty means /proc/sys.
	SysctlDir string
}

// Mount mounts a tmpfs, or with fstype "bind" source itself, at target; with "remount" it gives the tmpfs that is there
// other options. A tmpfs allows neither devices, nor programs, nor set-user-ID files.
func (Linux) Mount(source, target, fstype, data string) error {
	var flags uintptr
	switch fstype {
	case "tmpfs":
		flags = unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID
	case "remount":
		flags = unix.MS_REMOUNT | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSUID
	case "bind":
		fstype, flags = "", unix.MS_BIND
	default:
		return fmt.Errorf("mount %s: file system type %q is not known here", target, fstype)
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// Bind mounts what an open file stands for, with all that is mounted below it, at target.
func (Linux) Bind(source *os.File, target string) error {
	from := fmt.Sprintf("/proc/self/fd/%d", source.Fd())
	if err := unix.Mount(from, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	runtime.KeepAlive(source)
	return nil
}

// Unmount detaches what is mounted at target. Nothing mounted there, or no such path, is no error.
func (Linux) Unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// SetSysctl writes a kernel parameter. In the dotted key, a slash stands for a dot in a name, as sysctl(8) has it:
// net.ipv4.conf.eth0/100.rp_filter is /proc/sys/net/ipv4/conf/eth0.100/rp_filter.
func (l Linux) SetSysctl(key, value string) error {
	parts := strings.Split(key, ".")
	for i, part := range parts {
		parts[i] = strings.ReplaceAll(part, "/", ".")
	}
	name := filepath.Join(parts...)
	if !filepath.IsLocal(name) || name != strings.Join(parts, "/") {
		return fmt.Errorf("sysctl %q is malformed", key)
	}
	dir := l.SysctlDir
	if dir == "" {
		dir = "/proc/sys"
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", key, err)
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("sysctl %s: %w", key, err)
	}
	return nil
}
