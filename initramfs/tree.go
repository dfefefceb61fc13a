// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// Limits of the newc format and of the kernel that unpacks it.
const (
	// MaxFileSize is the largest file in bytes that the format's 32-bit size field can say.
	MaxFileSize = 1<<32 - 1
	// MaxPathSize is the longest path in bytes, without its terminating NUL: one less than the kernel's PATH_MAX.
	MaxPathSize = 4095
	// MaxEntries bounds the number of entries of one image.
	MaxEntries = 1 << 16
)

// trailerName ends an archive.
const trailerName = "TRAILER!!!"

// File is one entry of an initramfs: a regular file, a directory, a symbolic link or a character device.
type File struct {
	// Path is absolute and clean, for instance "/cloister/bin/crun".
	Path string
	// Mode holds the permissions, and the type bits of package io/fs: none, fs.ModeDir, fs.ModeSymlink, or
	// fs.ModeDevice|fs.ModeCharDevice. Set-uid, set-gid and sticky bits are refused: PID 1 has no use for them.
	Mode fs.FileMode
	// Data is the content of a regular file, unless Source is set. The tree keeps the slice without copying it, so a
	// caller can wipe a secret after Write.
	Data []byte
	// Source is a file of the build host whose bytes are streamed as the content of a regular file.
	Source string
	// Target is where a symbolic link points to.
	Target string
	// Major and Minor are the numbers of a character device.
	Major, Minor uint32
	// Secret keeps the content's hash out of the manifest, where it would help to guess a short password.
	Secret bool
}

// Tree is the content of an initramfs. The zero value is an empty tree. It is not safe for concurrent use.
type Tree struct {
	files   map[string]File
	digests map[string]string // of regular files that are no secrets, filled in by Manifest
}

// Add puts a file into the tree. Missing parent directories are made with mode 0755 when the tree is written; add a
// directory to give it another mode. A path can be added once.
func (t *Tree) Add(f File) error {
	if err := f.check(); err != nil {
		return fmt.Errorf("add %q to initramfs: %w", f.Path, err)
	}
	if _, ok := t.files[f.Path]; ok {
		return fmt.Errorf("add %q to initramfs: the path is there already", f.Path)
	}
	if t.files == nil {
		t.files = make(map[string]File)
	}
	t.files[f.Path] = f
	return nil
}

func (f *File) check() error {
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
		return errors.New("the path is not absolute and clean")
	}
	if strings.ContainsRune(f.Path, 0) || len(f.Path) > MaxPathSize || f.Path == "/"+trailerName {
		return errors.New("the path cannot stand in a cpio archive")
	}
	if extra := f.Mode &^ (fs.ModePerm | fs.ModeType); extra != 0 {
		return fmt.Errorf("mode %v has bits other than type and permissions", f.Mode)
	}
	hasData := f.Data != nil || f.Source != ""
	switch f.Mode.Type() {
	case 0:
		if f.Target != "" || f.Data != nil && f.Source != "" {
			return errors.New("a regular file has either data or a source, and no target")
		}
		return checkSize(int64(len(f.Data)))
	case fs.ModeDir, fs.ModeDevice | fs.ModeCharDevice:
		if hasData || f.Target != "" {
			return errors.New("a directory or device has neither content nor target")
		}
	case fs.ModeSymlink:
		if hasData || f.Target == "" || len(f.Target) > MaxPathSize || strings.ContainsRune(f.Target, 0) {
			return errors.New("a symbolic link has a target and no content")
		}
	default:
		return fmt.Errorf("type of mode %v is not supported", f.Mode)
	}
	return nil
}

func checkSize(n int64) error {
	if n < 0 || n > MaxFileSize {
		return fmt.Errorf("size %d does not fit the format's limit of %d bytes", n, int64(MaxFileSize))
	}
	return nil
}

// sorted returns the files and their missing parents in the order of their paths, which puts a directory before what
// it holds.
func (t *Tree) sorted() ([]File, error) {
	all := maps.Clone(t.files)
	if all == nil {
		all = make(map[string]File)
	}
	for p := range t.files {
		for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
			parent, ok := all[dir]
			if !ok {
				all[dir] = File{Path: dir, Mode: fs.ModeDir | 0o755}
			} else if !parent.Mode.IsDir() {
				return nil, fmt.Errorf("%q lies below %q, which is not a directory", p, dir)
			}
		}
	}
	if len(all) > MaxEntries {
		return nil, fmt.Errorf("%d entries, the limit is %d", len(all), MaxEntries)
	}
	out := make([]File, 0, len(all))
	for _, p := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[p])
	}
	return out, nil
}
