// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
)

// newc constants: the magic of a header without checksum, the header's size, and the alignments of names and contents
// (after a header) and of the whole archive.
const (
	newcMagic      = "070701"
	newcHeaderSize = 110
	newcAlign      = 4
	archiveAlign   = 512
)

// File type bits of st_mode, as the format stores them.
const (
	typeMask    = 0o170000
	typeRegular = 0o100000
	typeDir     = 0o040000
	typeSymlink = 0o120000
	typeChar    = 0o020000
)

// Write writes the tree as an uncompressed newc archive, padded with zeros to a multiple of 512 bytes. Where Manifest
// was called before, a file whose content has changed since is an error. It stops early when ctx ends.
func (t *Tree) Write(ctx context.Context, w io.Writer) error {
	files, err := t.sorted()
	if err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	cw := &cpioWriter{w: bufio.NewWriterSize(w, 1<<16)}
	for i := range files {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("write initramfs: %w", err)
		}
		if err := cw.file(&files[i], uint32(i+1), t.digests[files[i].Path]); err != nil {
			return fmt.Errorf("write %s to initramfs: %w", files[i].Path, err)
		}
	}
	if err := cw.close(); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return nil
}

// cpioWriter writes newc entries and counts the bytes, for the padding.
type cpioWriter struct {
	w *bufio.Writer
	n int64
}

// Write implements io.Writer.
func (c *cpioWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *cpioWriter) pad(align int64) error {
	_, err := c.Write(make([]byte, -c.n&(align-1)))
	return err
}

// header writes one entry's header and name. Link counts are what a file system would show for an entry by itself.
func (c *cpioWriter) header(name string, ino, mode, size, major, minor uint32) error {
	nlink := uint32(1)
	if mode&typeMask == typeDir {
		nlink = 2
	}
	fields := []uint32{
		ino, mode, 0 /* uid */, 0 /* gid */, nlink, 0 /* mtime */, size,
		0, 0, major, minor, uint32(len(name) + 1), 0, /* check */
	}
	if _, err := io.WriteString(c, newcMagic); err != nil {
		return err
	}
	for _, f := range fields {
		if _, err := fmt.Fprintf(c, "%08X", f); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(c, name+"\x00"); err != nil {
		return err
	}
	return c.pad(newcAlign)
}

func (c *cpioWriter) file(f *File, ino uint32, digest string) error {
	name := f.Path[1:]
	perm := uint32(f.Mode.Perm())
	switch f.Mode.Type() {
	case fs.ModeDir:
		return c.header(name, ino, typeDir|perm, 0, 0, 0)
	case fs.ModeDevice | fs.ModeCharDevice:
		return c.header(name, ino, typeChar|perm, 0, f.Major, f.Minor)
	case fs.ModeSymlink:
		if err := c.header(name, ino, typeSymlink|0o777, uint32(len(f.Target)), 0, 0); err != nil {
			return err
		}
		if _, err := io.WriteString(c, f.Target); err != nil {
			return err
		}
		return c.pad(newcAlign)
	default:
		return c.regular(f, name, ino, typeRegular|perm, digest)
	}
}

func (c *cpioWriter) regular(f *File, name string, ino, mode uint32, digest string) error {
	r, size, err := f.open()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := c.header(name, ino, mode, uint32(size), 0, 0); err != nil {
		return err
	}
	var h hash.Hash
	var w io.Writer = c
	if digest != "" {
		h = sha256.New()
		w = io.MultiWriter(c, h)
	}
	if err := copyExactly(w, r, size); err != nil {
		return err
	}
	if h != nil && hex.EncodeToString(h.Sum(nil)) != digest {
		return fmt.Errorf("%s has changed while the image was built", f.Source)
	}
	return c.pad(newcAlign)
}

func (c *cpioWriter) close() error {
	if err := c.header(trailerName, 0, 0, 0, 0, 0); err != nil {
		return err
	}
	if err := c.pad(archiveAlign); err != nil {
		return err
	}
	return c.w.Flush()
}

// open returns the content of a regular file and its size.
func (f *File) open() (io.ReadCloser, int64, error) {
	if f.Source == "" {
		return io.NopCloser(bytes.NewReader(f.Data)), int64(len(f.Data)), nil
	}
	src, err := os.Open(f.Source)
	if err != nil {
		return nil, 0, err
	}
	st, err := src.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", f.Source)
	}
	if err == nil {
		err = checkSize(st.Size())
	}
	if err != nil {
		_ = src.Close()
		return nil, 0, err
	}
	return src, st.Size(), nil
}

// copyExactly copies size bytes and makes sure that r ends there.
func copyExactly(w io.Writer, r io.Reader, size int64) error {
	n, err := io.Copy(w, io.LimitReader(r, size))
	if err != nil {
		return err
	}
	more, err := io.CopyN(io.Discard, r, 1)
	if n != size || more != 0 {
		return fmt.Errorf("the file's size changed from %d bytes while it was read", size)
	}
	if err != io.EOF { //nolint:errorlint // CopyN returns io.EOF itself
		return err
	}
	return nil
}
