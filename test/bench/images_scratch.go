// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// scratch makes a new file system for each measurement below dir. Nobody pays for what an earlier one has left: ext4, for
// one, does not use the inode of a file that was removed a minute ago, and looks at all of those for each new one.
type scratch struct {
	dir string
	// disk says ext4 in a file on dir's disk, where a guest has a scratch disk; else it is tmpfs, where it has none.
	disk bool
}

// diskSize bounds what a measurement can write to a disk, in bytes; no space is used before that.
const diskSize = 16 << 30

func (s scratch) name() string {
	if s.disk {
		return "ext4"
	}
	return "tmpfs"
}

// folder returns a folder that is an empty file system.
func (s scratch) folder(ctx context.Context) (_ string, err error) {
	dir, err := os.MkdirTemp(s.dir, "fs-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.remove(dir))
		}
	}()
	if !s.disk {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755,size=80%"); err != nil {
			return "", fmt.Errorf("mount a tmpfs: %w", err)
		}
		return dir, nil
	}
	unix.Sync() // what is written later would be written at the next one's cost
	file := s.file(dir)
	f, err := os.Create(file)
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", "-N", "500000", file}, {"mount", "-o", "loop,noatime", file, dir},
	} {
		if text, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", args[0], err, text)
		}
	}
	return dir, nil
}

func (s scratch) file(dir string) string { return filepath.Join(s.dir, filepath.Base(dir)+".img") }

// leave removes the file system of a folder.
func (s scratch) leave(dir string) error {
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return s.remove(dir)
}

func (s scratch) remove(dir string) error {
	err := os.Remove(dir)
	if s.disk {
		err = errors.Join(err, os.Remove(s.file(dir)))
	}
	return err
}
