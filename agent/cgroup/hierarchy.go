// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// defaultRoot is where the hierarchy is mounted in a guest.
	defaultRoot = "/sys/fs/cgroup"
	// maxFile bounds a file of the kernel, other than a list of processes.
	maxFile = 1 << 20
	// maxPath bounds a path as the kernel does (PATH_MAX).
	maxPath = 4095
)

// Hierarchy is a cgroup v2 hierarchy. Paths of groups are absolute within it and name a group below its root, such as
// "/kata/c1". Its methods may be called at the same time; the zero value is ready to use.
type Hierarchy struct {
	// Root is where it is mounted; "" means /sys/fs/cgroup.
	Root string
}

// IsV2 reports whether a cgroup v2 hierarchy is mounted on the root. On a host with cgroup v1 it is false.
func (h Hierarchy) IsV2() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(h.root(), &st); err != nil {
		return false, fmt.Errorf("check file system of %s: %w", h.root(), err)
	}
	return st.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

// Controllers returns the names of the controllers that the hierarchy has, such as "memory".
func (h Hierarchy) Controllers() ([]string, error) {
	r, err := os.OpenRoot(h.root())
	if err != nil {
		return nil, fmt.Errorf("open cgroup root: %w", err)
	}
	defer func() { _ = r.Close() }()
	data, err := readFile(r, "cgroup.controllers")
	if err != nil {
		return nil, fmt.Errorf("list cgroup controllers: %w", err)
	}
	return strings.Fields(string(data)), nil
}

func (h Hierarchy) root() string {
	if h.Root == "" {
		return defaultRoot
	}
	return h.Root
}

// relative checks the path of a group and returns it relative to the root. The root itself is no group of a container.
func relative(path string) (string, error) {
	rel, ok := strings.CutPrefix(path, "/")
	if !ok || rel == "" || rel == "." || len(path) > maxPath || !fs.ValidPath(rel) || strings.ContainsRune(rel, 0) {
		return "", fmt.Errorf("cgroup path %.256q: %w", path, fs.ErrInvalid)
	}
	return rel, nil
}

// open returns the folder of a group. As an os.Root it also stays the same group when the path comes to name another.
func (h Hierarchy) open(path string) (*os.Root, error) {
	rel, err := relative(path)
	if err != nil {
		return nil, err
	}
	r, err := os.OpenRoot(h.root())
	if err != nil {
		return nil, fmt.Errorf("open cgroup root: %w", err)
	}
	defer func() { _ = r.Close() }()
	group, err := r.OpenRoot(rel)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", path, gone(err))
	}
	return group, nil
}

// openForeign opens a group to act on its processes and refuses one that this process is in: freezing that would stop
// the agent for good.
func (h Hierarchy) openForeign(path string) (*os.Root, error) {
	self, err := ownPath()
	if err != nil {
		return nil, err
	}
	if self == path || strings.HasPrefix(self, path+"/") {
		return nil, fmt.Errorf("cgroup %s is the agent's own: %w", path, fs.ErrPermission)
	}
	return h.open(path)
}

// ownPath returns the path of this process's group, "" where it is in none of version 2, see cgroups(7).
func ownPath() (string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(path, "\n"), nil
		}
	}
	return "", nil
}

// gone adds fs.ErrNotExist to ENODEV, which is what an open file of a removed group gives.
func gone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// readFile reads a whole file of a group.
func readFile(group *os.Root, name string) ([]byte, error) {
	f, err := group.Open(name)
	if err != nil {
		return nil, gone(err)
	}
	defer f.Close()
	return readAll(f, maxFile)
}

// readAll reads a file and fails if it is longer than limit bytes.
func readAll(f *os.File, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, gone(err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: longer than %d bytes", filepath.Base(f.Name()), limit)
	}
	return data, nil
}

// writeFile writes a value into a file of a group. It makes no file.
func writeFile(group *os.Root, name, value string) error {
	f, err := group.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return gone(err)
	}
	_, err = f.WriteString(value)
	return gone(errors.Join(err, f.Close()))
}
