// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// output is an output folder in the making: a temporary folder beside the final one.
type output struct {
	final string
	dir   string
}

// newOutput makes the temporary folder, unless something that is not ours is in the way of the final one.
func newOutput(final string) (*output, error) {
	final = filepath.Clean(final)
	if _, err := replaceable(final); err != nil {
		return nil, &InputError{Input: "output", Err: err, What: "give a new folder, or remove this one yourself"}
	}
	dir, err := os.MkdirTemp(filepath.Dir(final), filepath.Base(final)+".tmp-")
	if err != nil {
		return nil, &InputError{Input: "output", Err: err}
	}
	return &output{final: final, dir: dir}, nil
}

// replaceable says whether something lies at the final path; it is an error if that is neither a guest nor an empty
// folder.
func replaceable(final string) (exists bool, err error) {
	st, err := os.Lstat(final)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !st.IsDir() {
		return true, fmt.Errorf("%s is there and is not a folder", final)
	}
	entries, err := os.ReadDir(final)
	if err != nil {
		return true, err
	}
	if len(entries) == 0 {
		return true, nil
	}
	if _, err := Load(final); err != nil {
		return true, fmt.Errorf("%s holds something else than a guest: %w", final, err)
	}
	ours := map[string]bool{KernelFile: true, InitramfsFile: true, DiskFile: true, GuestFile: true}
	for _, e := range entries {
		if !ours[e.Name()] {
			return true, fmt.Errorf("%s holds %s, which does not belong to a guest", final, e.Name())
		}
	}
	return true, nil
}

// discard removes the temporary folder.
func (o *output) discard() { _ = os.RemoveAll(o.dir) }

// publish puts the temporary folder into the place of the final one, in one step. A folder that was there before ends
// as the temporary one, for discard to remove.
func (o *output) publish() error {
	if err := os.Chmod(o.dir, 0o755); err != nil {
		return fmt.Errorf("publish %s: %w", o.final, err)
	}
	if err := syncDir(o.dir); err != nil {
		return fmt.Errorf("publish %s: %w", o.final, err)
	}
	exists, err := replaceable(o.final) // again: the build took a while
	if err != nil {
		return &InputError{Input: "output", Err: err, What: "give a new folder, or remove this one yourself"}
	}
	flags := uint(unix.RENAME_NOREPLACE)
	if exists {
		flags = unix.RENAME_EXCHANGE
	}
	err = unix.Renameat2(unix.AT_FDCWD, o.dir, unix.AT_FDCWD, o.final, flags)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = o.publishInTwoSteps(exists) // a file system without these flags
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", o.final, err)
	}
	return syncDir(filepath.Dir(o.final))
}

// publishInTwoSteps moves an old folder aside first. If the program dies in between, both folders are complete, but
// neither has the final name.
func (o *output) publishInTwoSteps(exists bool) error {
	if !exists {
		return os.Rename(o.dir, o.final)
	}
	aside := o.dir + ".old"
	if err := os.Rename(o.final, aside); err != nil {
		return err
	}
	if err := os.Rename(o.dir, o.final); err != nil {
		return errors.Join(err, os.Rename(aside, o.final))
	}
	return os.Rename(aside, o.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
