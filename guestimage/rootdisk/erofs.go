// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/erofs/go-erofs"
)

// writeFileSystem writes the source and images as one erofs image to f and returns its size, whole blocks.
func writeFileSystem(ctx context.Context, f *os.File, source string, images map[string]*Layered) (int64, error) {
	root, closeSource, err := openSource(ctx, source, filepath.Dir(f.Name()))
	if err != nil {
		return 0, err
	}
	defer closeSource()
	if err := root.addMountPoints(); err != nil {
		return 0, err
	}
	if err := root.addImages(images); err != nil {
		return 0, err
	}
	if err := writeImage(ctx, f, root); err != nil {
		return 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size of erofs image: %w", err)
	}
	if size == 0 || size%blockSize != 0 {
		return 0, fmt.Errorf("erofs image of %d bytes is not whole blocks", size)
	}
	return size, nil
}

// writeImage writes the tree as an erofs image.
func writeImage(ctx context.Context, out io.WriteSeeker, root *node) error {
	w := erofs.Create(out, erofs.WithBlockSize(blockSize), erofs.WithBuildTime(0, 0))
	if err := w.CopyFrom(&treeFS{ctx: ctx, root: root}); err != nil {
		return fmt.Errorf("plan erofs image: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write erofs image: %w", err)
	}
	return nil
}

// treeFS shows a tree of nodes to the erofs writer as an fs.FS. File content is opened only when it is read: the writer
// asks for a handle of every file before it reads the first.
type treeFS struct {
	ctx  context.Context //nolint:containedctx // fs.FS has no other way to hand it to a file's Read
	root *node
}

func (t *treeFS) find(op, name string) (*node, error) {
	if n := t.root.lookup(name); n != nil {
		return n, nil
	}
	return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

// Open implements fs.FS.
func (t *treeFS) Open(name string) (fs.File, error) {
	n, err := t.find("open", name)
	if err != nil {
		return nil, err
	}
	return &file{ctx: t.ctx, info: info{path.Base(name), n}, left: n.size}, nil
}

// ReadDir implements fs.ReadDirFS.
func (t *treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.find("readdir", name)
	if err != nil {
		return nil, err
	}
	entries := make([]fs.DirEntry, 0, len(n.children))
	for _, child := range n.names() {
		entries = append(entries, fs.FileInfoToDirEntry(info{child, n.children[child]}))
	}
	return entries, nil
}

// Stat implements fs.StatFS.
func (t *treeFS) Stat(name string) (fs.FileInfo, error) {
	n, err := t.find("stat", name)
	if err != nil {
		return nil, err
	}
	return info{path.Base(name), n}, nil
}

// ReadLink is what the erofs writer asks for symbolic links.
func (t *treeFS) ReadLink(name string) (string, error) {
	n, err := t.find("readlink", name)
	if err != nil {
		return "", err
	}
	return n.target, nil
}

// info is a node's fs.FileInfo.
type info struct {
	name string
	*node
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return time.Unix(0, 0) }
func (i info) IsDir() bool        { return i.mode.IsDir() }

// Sys returns what the erofs writer takes owners, links and attributes from.
func (i info) Sys() any {
	links := 1
	if i.IsDir() {
		links = 2
		for _, c := range i.children {
			if c.mode.IsDir() {
				links++
			}
		}
	}
	return &erofs.Stat{
		UID: uint32(i.uid), GID: uint32(i.gid),
		Rdev: i.rdev, Nlink: links, Xattrs: i.xattrs,
	}
}

// file reads exactly the size that its node has promised, because the image is laid out before any content is read.
type file struct {
	ctx  context.Context //nolint:containedctx // see treeFS
	info info
	left int64
	r    io.ReadCloser
}

// Stat implements fs.File.
func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }

// Read implements fs.File.
func (f *file) Read(b []byte) (int, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	if err := f.ctx.Err(); err != nil {
		return 0, err
	}
	if f.r == nil {
		r, err := f.info.open()
		if err != nil {
			return 0, err
		}
		f.r = r
	}
	n, err := f.r.Read(b[:min(int64(len(b)), f.left)])
	f.left -= int64(n)
	switch {
	case f.left == 0:
		err = nil // io.EOF comes with the next call
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("file became shorter than %d bytes while it was read", f.info.size)
	}
	return n, err
}

// Close implements fs.File.
func (f *file) Close() error {
	if f.r == nil {
		return nil
	}
	return f.r.Close()
}
