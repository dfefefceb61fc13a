// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package hooks finds the hooks of the guest: programs that the OCI runtime runs, as root and outside of the container,
// when a container is made, started and removed.
//
// Which folder holds them is said by the untrusted host (guest_hook_path of the Kata configuration), so that the folder
// itself must be above doubt: it and the programs belong to root, nobody else may write to them, and they lie on the same
// mount as the root folder. That leaves out all that the host or a container can fill at run time: shared files,
// volumes, and root file systems of containers.
//
// The layout is that of Kata's agent: one folder of programs each for prestart, poststart and poststop.
package hooks

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// maxHooks bounds the programs of one folder.
	maxHooks = 64
	// timeout of one hook, in seconds: one that hangs would hold up its container for ever.
	timeout = 30
)

// Find returns the hooks in folder dir below root, nil if there are none. Symbolic links of the path are resolved within
// root; the hooks' paths are the resolved ones. Folders, links and programs without permission to execute are passed
// over, as Kata does. A folder that does not exist, and programs or folders that anybody but root may change, are errors.
func Find(root, dir string) (*specs.Hooks, error) {
	rootDir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("guest hooks: %w", err)
	}
	defer rootDir.Close()
	top, err := openDir(rootDir, dir, unix.RESOLVE_IN_ROOT)
	if err != nil {
		return nil, fmt.Errorf("guest hooks: %w", err)
	}
	defer top.Close()
	if err := check(top); err != nil {
		return nil, fmt.Errorf("guest hooks: %w", err)
	}
	var hooks specs.Hooks
	found := 0
	for kind, list := range map[string]*[]specs.Hook{
		"prestart":  &hooks.Prestart, //nolint:staticcheck // SA1019: deprecated, but what Kata's folder means
		"poststart": &hooks.Poststart, "poststop": &hooks.Poststop,
	} {
		if *list, err = findKind(top, kind); err != nil {
			return nil, fmt.Errorf("guest hooks: %s: %w", kind, err)
		}
		found += len(*list)
	}
	if found == 0 {
		return nil, nil //nolint:nilnil // no hooks are a value of the spec
	}
	return &hooks, nil
}

// openDir opens a folder to read, without leaving the mount of its parent.
func openDir(parent *os.File, path string, resolve uint64) (*os.File, error) {
	return open(parent, path, unix.O_RDONLY|unix.O_DIRECTORY, resolve)
}

func open(parent *os.File, path string, flags, resolve uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(parent.Fd()), path, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.EXDEV) {
		return nil, fmt.Errorf("%q lies on another file system than the root folder", path)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "openat2", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// check reports an error if anybody but root may change what the file is.
func check(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &fs.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return fmt.Errorf("%q can be changed by others than root (owner %d, mode %o)", f.Name(), st.Uid, st.Mode&0o7777)
	}
	return nil
}

// findKind returns the hooks of one folder, by name.
func findKind(top *os.File, kind string) ([]specs.Hook, error) {
	dir, err := openDir(top, kind, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := check(dir); err != nil {
		return nil, err
	}
	// Where the folder really is: the OCI runtime opens the hook by its path.
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, err
	}
	entries, err := dir.ReadDir(maxHooks + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > maxHooks {
		return nil, fmt.Errorf("the folder holds more than %d files", maxHooks)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	var hooks []specs.Hook
	for _, e := range entries {
		ok, err := isProgram(dir, e)
		if err != nil {
			return nil, err
		}
		if ok {
			hooks = append(hooks, specs.Hook{Path: filepath.Join(path, e.Name()), Args: []string{e.Name(), kind}, Timeout: new(timeout)})
		}
	}
	return hooks, nil
}

// isProgram reports whether a folder's entry is a program to run, and an error if it is one not to be trusted.
func isProgram(dir *os.File, e fs.DirEntry) (bool, error) {
	if !e.Type().IsRegular() {
		return false, nil
	}
	f, err := open(dir, e.Name(), unix.O_PATH, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return false, err
	}
	return true, check(f)
}
