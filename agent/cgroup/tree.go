// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

const (
	// maxGroups bounds the groups of one container; one that may make groups of its own could make any number.
	maxGroups = 1 << 16
	// maxProcs bounds a list of processes: 4 Mi of them, the most that Linux has, in 8 bytes each.
	maxProcs = 32 << 20
)

// Procs returns the processes of a group and of the groups below it, in ascending order.
func (h Hierarchy) Procs(path string) ([]int, error) {
	group, err := h.open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = group.Close() }()
	pids, err := procs(group)
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
	}
	return pids, nil
}

func procs(group *os.Root) ([]int, error) {
	groups, err := subtree(group)
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, g := range groups {
		f, err := group.Open(path.Join(g, "cgroup.procs"))
		if err == nil {
			var data []byte
			data, err = readAll(f, maxProcs-int64(len(all)))
			f.Close()
			all = append(all, data...)
		}
		// Of a threaded group the nearest group above that is none lists the processes.
		err = gone(err)
		if g != "." && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP)) {
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	pids, err := parseProcs(all)
	if err != nil {
		return nil, fmt.Errorf("parse cgroup.procs: %w", err)
	}
	return pids, nil
}

// subtree returns the paths of a group (".") and of all groups below it, each after the one that it is in. A group too
// deep for a path of the kernel's length is an error.
func subtree(group *os.Root) ([]string, error) {
	groups := []string{"."}
	for i := 0; i < len(groups); i++ {
		names, err := list(group, groups[i], fs.DirEntry.IsDir)
		if i > 0 && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(groups)+len(names) > maxGroups {
			return nil, fmt.Errorf("more than %d groups", maxGroups)
		}
		for _, name := range names {
			child := path.Join(groups[i], name)
			if len(child) > maxPath {
				return nil, fmt.Errorf("a group is nested too deeply: %w", unix.ENAMETOOLONG)
			}
			groups = append(groups, child)
		}
	}
	return groups, nil
}

// list returns the names of a folder's entries that are wanted.
func list(group *os.Root, dir string, want func(fs.DirEntry) bool) ([]string, error) {
	f, err := group.Open(dir)
	if err != nil {
		return nil, gone(err)
	}
	defer f.Close()
	var names []string
	for {
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			if want(e) {
				names = append(names, e.Name())
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return names, nil
		case err != nil:
			return nil, gone(err)
		case len(names) > maxGroups:
			return nil, fmt.Errorf("more than %d entries", maxGroups)
		}
	}
}
