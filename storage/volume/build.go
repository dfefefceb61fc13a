// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const setGID = unix.S_ISGID

// build makes a volume that is locked. If it fails, it takes back what it has done.
func (m *Manager) build(ctx context.Context, v *volume, p plan) error {
	parent, err := m.openParent(p.rel, true)
	if err != nil {
		return err
	}
	defer parent.Close()
	name := path.Base(p.rel)
	err = unix.Mkdirat(int(parent.Fd()), name, 0o755)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return os.NewSyscallError("mkdirat", err)
	}
	made := err == nil
	err = m.fill(ctx, v, p, parent)
	if err == nil {
		return nil
	}
	undo := m.unmount(v, p, parent)
	if made && undo == nil {
		undo = os.NewSyscallError("unlinkat", unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR))
	}
	if undo != nil {
		return errors.Join(err, fmt.Errorf("undo: %w", undo))
	}
	return err
}

// fill makes an existing folder the volume.
func (m *Manager) fill(ctx context.Context, v *volume, p plan, parent *os.File) error {
	name := path.Base(p.rel)
	dir, err := openat(parent, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if p.driver == DriverLocal {
		if p.mode != nil {
			if err := chmod(dir, *p.mode); err != nil {
				return err
			}
		}
		return own(ctx, dir, p)
	}
	if p.fstype == fsHuge {
		if err := m.pools.reserve(p.rel, p.pageSize, p.size/p.pageSize); err != nil {
			return err
		}
	}
	// The source of these file systems is a name without meaning, which the host does not get to choose.
	if err := m.config.Mount(p.fstype, procPath(dir), p.fstype, slices.Concat(p.flags, p.data)); err != nil {
		return err
	}
	v.mounted = true
	root, err := openat(parent, name) // not the folder that the mount covers
	if err != nil {
		return err
	}
	defer root.Close()
	return own(ctx, root, p)
}

// own gives a volume to its group.
func own(ctx context.Context, root *os.File, p plan) error {
	if p.gid != nil {
		if err := chgrp(root, *p.gid); err != nil {
			return err
		}
		st, err := stat(root)
		if err != nil {
			return err
		}
		if err := chmod(root, st.Mode&0o7777|setGID); err != nil {
			return err
		}
	}
	if p.group == nil {
		return nil
	}
	return giveToGroup(ctx, root, *p.group, slices.Contains(p.flags, "ro"))
}

// unbuild unmakes a volume that is locked. It may be called again after it has failed.
func (m *Manager) unbuild(v *volume) error {
	if v.plan.driver == "" {
		return nil
	}
	parent, err := m.openParent(v.rel, false)
	if errors.Is(err, unix.ENOENT) {
		return m.pools.release(v.rel) // someone has removed all of it, and a mount with it
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := m.unmount(v, v.plan, parent); err != nil {
		return err
	}
	if v.plan.driver == DriverLocal {
		return removeAll(parent, path.Base(v.rel))
	}
	err = unix.Unlinkat(int(parent.Fd()), path.Base(v.rel), unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return os.NewSyscallError("unlinkat", err)
	}
	return nil
}

// unmount unmounts what is mounted on a volume, and gives back its huge pages.
func (m *Manager) unmount(v *volume, p plan, parent *os.File) error {
	if v.mounted {
		// By the folder's descriptor and a name that is not followed: umount2(2) would not follow a descriptor's own link.
		if err := m.config.Unmount(procPath(parent) + "/" + path.Base(p.rel)); err != nil {
			return err
		}
		v.mounted = false
	}
	return m.pools.release(p.rel)
}

// removeAll removes a folder and everything in it, without following links.
func removeAll(parent *os.File, name string) error {
	root, err := os.OpenRoot(procPath(parent))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(name), root.Close())
}

// open opens the folder of an existing volume.
func (m *Manager) open(rel string) (*os.File, error) {
	parent, err := m.openParent(rel, false)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	return openat(parent, path.Base(rel))
}

// openParent opens the folder that a volume's folder is in, and makes what is missing of it if create is set.
func (m *Manager) openParent(rel string, create bool) (*os.File, error) {
	dir, err := openat(m.root, ".")
	if err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(path.Dir(rel), "/") {
		if create {
			if err := unix.Mkdirat(int(dir.Fd()), name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
				dir.Close()
				return nil, os.NewSyscallError("mkdirat", err)
			}
		}
		next, err := openat(dir, name)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

func openRoot(name string) (*os.File, error) {
	return os.OpenFile(name, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// openat opens a folder in a folder with O_PATH: the root of what is mounted there, but no link.
func openat(dir *os.File, name string) (*os.File, error) {
	return openHow(dir, name, unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

func openHow(dir *os.File, name string, how unix.OpenHow) (*os.File, error) {
	how.Flags |= unix.O_CLOEXEC
	for {
		fd, err := unix.Openat2(int(dir.Fd()), name, &how)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("openat2", err)
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

func stat(f *os.File) (unix.Stat_t, error) {
	var st unix.Stat_t
	return st, os.NewSyscallError("fstat", unix.Fstat(int(f.Fd()), &st))
}

// chgrp gives what is open, perhaps with O_PATH, to a group.
func chgrp(f *os.File, gid uint32) error {
	return os.NewSyscallError("fchownat", unix.Fchownat(int(f.Fd()), "", -1, int(gid), unix.AT_EMPTY_PATH))
}

// chmod sets the permissions of what is open, perhaps with O_PATH, where fchmod(2) would fail.
func chmod(f *os.File, mode uint32) error {
	return os.NewSyscallError("chmod", unix.Chmod(procPath(f), mode))
}

// procPath names what is open, whatever has become of its path.
func procPath(f *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}
