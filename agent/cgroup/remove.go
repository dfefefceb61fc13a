// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// maxRemovals bounds how often Remove starts again because a group came to have processes or groups in it.
const maxRemovals = 100

// Remove removes a group and the groups below it. While one has processes, it waits for their end or for the end of
// ctx; it does not kill them. A group that is gone is no error.
func (h Hierarchy) Remove(ctx context.Context, path string) error {
	group, err := h.openForeign(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	defer func() { _ = group.Close() }()
	for range maxRemovals {
		err = h.removeOnce(group, path)
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		if waited := await(ctx, group, "populated", 0); waited != nil && !errors.Is(waited, fs.ErrNotExist) {
			err = waited
			break
		}
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

// removeOnce removes a tree of groups as it is now, the deepest first.
func (h Hierarchy) removeOnce(group *os.Root, path string) error {
	groups, err := subtree(group)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, g := range slices.Backward(groups[1:]) {
		if err := group.Remove(g); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	rel, err := relative(path)
	if err != nil {
		return err
	}
	parent, err := os.OpenRoot(h.root())
	if err != nil {
		return fmt.Errorf("open cgroup root: %w", err)
	}
	defer func() { _ = parent.Close() }()
	if err := parent.Remove(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
