// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
)

const freezeFile = "cgroup.freeze"

// Freeze stops all processes of a group and of the groups below it, and returns when all are stopped. One process in
// an uninterruptible system call can delay that without bound, so ctx should have an end; the group is then thawed
// again unless someone had frozen it before. The processes of a frozen group can still be killed.
func (h Hierarchy) Freeze(ctx context.Context, path string) error {
	group, err := h.openForeign(path)
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	defer func() { _ = group.Close() }()
	if err := freeze(ctx, group); err != nil {
		return fmt.Errorf("freeze cgroup %s: %w", path, err)
	}
	return nil
}

func freeze(ctx context.Context, group *os.Root) error {
	data, err := readFile(group, freezeFile)
	if err != nil {
		return err
	}
	before, err := parseNumber(data)
	if err != nil {
		return fmt.Errorf("parse %s: %w", freezeFile, err)
	}
	if err := writeFile(group, freezeFile, "1"); err != nil {
		return err
	}
	err = await(ctx, group, "frozen", 1)
	if err != nil && before == 0 {
		err = errors.Join(err, writeFile(group, freezeFile, "0"))
	}
	return err
}

// Thaw lets the processes of a group run again and returns when they may. Groups below it that were frozen by
// themselves stay so, and so does one in a frozen parent: then Thaw waits for the parent or for the end of ctx.
func (h Hierarchy) Thaw(ctx context.Context, path string) error {
	group, err := h.open(path)
	if err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	defer func() { _ = group.Close() }()
	err = writeFile(group, freezeFile, "0")
	if err == nil {
		err = await(ctx, group, "frozen", 0)
	}
	if err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", path, err)
	}
	return nil
}

// Frozen reports whether all processes of a group and of those below it are stopped by the freezer.
func (h Hierarchy) Frozen(path string) (bool, error) {
	group, err := h.open(path)
	if err != nil {
		return false, err
	}
	defer func() { _ = group.Close() }()
	data, err := readFile(group, eventsFile)
	if err != nil {
		return false, fmt.Errorf("read state of cgroup %s: %w", path, err)
	}
	frozen, err := eventValue(data, "frozen")
	if err != nil {
		return false, fmt.Errorf("read state of cgroup %s: %w", path, err)
	}
	return frozen == 1, nil
}
