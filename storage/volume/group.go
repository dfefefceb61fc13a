// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxGroupDepth bounds how deep giveToGroup goes, because each level costs two open files.
const maxGroupDepth = 256

// FSGroup says which group owns what is in a volume, Kubernetes' fsGroup.
type FSGroup struct {
	ID uint32
	// OnRootMismatch leaves the volume alone if its root looks as giveToGroup would leave it.
	OnRootMismatch bool
}

// giveToGroup gives a volume, whose root folder is open, to a group: folders become group g.ID's with the mode bits
// 02770 set for their group part (02550 if readOnly), files with 0660 (0440). As chown(2) does, it takes the set-id bits
// off executable files. Symbolic links and device nodes stay as they are, and other file systems in the volume too.
//
// All of it goes by file descriptors: what is moved or replaced by a link meanwhile leads nowhere else.
func giveToGroup(ctx context.Context, root *os.File, g FSGroup, readOnly bool) error {
	st, err := stat(root)
	if err != nil {
		return fmt.Errorf("change group: %w", err)
	}
	want := groupBits(st.Mode, readOnly)
	if g.OnRootMismatch && st.Gid == g.ID && st.Mode&want == want {
		return nil
	}
	if err := changeGroup(ctx, root, g.ID, readOnly, 0); err != nil {
		return fmt.Errorf("change group: %w", err)
	}
	return nil
}

// groupBits returns the mode bits that a file or folder gets.
func groupBits(mode uint32, readOnly bool) uint32 {
	bits := uint32(0o660)
	if readOnly {
		bits = 0o440
	}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		bits |= 0o110 | setGID
	}
	return bits
}

// changeGroup does it for one file. A folder comes after what is in it: one that was interrupted does not look done.
func changeGroup(ctx context.Context, f *os.File, gid uint32, readOnly bool, depth int) error {
	st, err := stat(f)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK, unix.S_IFBLK, unix.S_IFCHR:
		return nil
	case unix.S_IFDIR:
		if err := changeEntries(ctx, f, gid, readOnly, depth+1); err != nil {
			return err
		}
	}
	if err := chgrp(f, gid); err != nil {
		return err
	}
	if st, err = stat(f); err != nil { // chown may have cleared bits
		return err
	}
	return chmod(f, st.Mode&0o7777|groupBits(st.Mode, readOnly))
}

func changeEntries(ctx context.Context, f *os.File, gid uint32, readOnly bool, depth int) error {
	if depth > maxGroupDepth {
		return fmt.Errorf("folders are more than %d deep", maxGroupDepth)
	}
	const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	dir, err := openHow(f, ".", unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY, Resolve: resolve})
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			entry, err := openHow(f, name, unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: resolve})
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EXDEV) { // removed meanwhile, or another mount
				continue
			}
			if err != nil {
				return err
			}
			err = changeGroup(ctx, entry, gid, readOnly, depth)
			entry.Close()
			if err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
