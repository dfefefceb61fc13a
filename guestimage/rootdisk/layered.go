// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"sync"

	"github.com/cloister-cc/cloister/image/unpack"
)

// maxLayered bounds the files of an image's root file system together, in bytes: 64 GiB, what a guest allows, too.
const maxLayered = 64 << 30

// Layered is the root file system of a container image, made of the image's layers. Options.Images puts it into the root
// disk. Contents of files lie in a scratch file until Close.
//
// What comes out is what a container in the guest sees of the same layers: each layer by itself as image/unpack writes
// it, below that what overlayfs shows of the lower ones. There are these differences: times are 0, files that were linked
// to each other are copies, and attributes are those that rootdisk keeps.
type Layered struct {
	root  *node
	spool *os.File
	end   int64 // of what was written to spool
	limit int64
	close func() error
}

// NewLayered returns an empty root file system. Its scratch file is made in dir and has no name.
func NewLayered(dir string) (*Layered, error) {
	spool, err := scratchFile(dir)
	if err != nil {
		return nil, err
	}
	return &Layered{root: newDir(0o755), spool: spool, limit: maxLayered, close: sync.OnceValue(spool.Close)}, nil
}

// Close drops the contents.
func (l *Layered) Close() error { return l.close() }

// Size is the size of all files together in bytes.
func (l *Layered) Size() int64 { return l.root.total() }

// Apply puts a layer, an uncompressed tar stream, upon those that are there, and reads r to its end. Errors of limits are
// unpack.ErrLimit. After an error, or if r turns out not to be what it should, all of l is of no use any more.
func (l *Layered) Apply(ctx context.Context, r io.Reader, limits unpack.Limits) (unpack.Stats, error) {
	f := unpack.NewFilter(limits)
	limited := f.Reader(r)
	t := &layerTree{root: newDir(0o755), left: f.Limits().Files}
	if err := l.read(ctx, tar.NewReader(limited), f, t); err != nil {
		return unpack.Stats{}, fmt.Errorf("read layer: %w", err)
	}
	// What follows the tar's end marker belongs to the digests.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return unpack.Stats{}, fmt.Errorf("read layer: %w", err)
	}
	merge(l.root, t.root)
	if size := l.Size(); size > l.limit { // hard links multiply it
		return unpack.Stats{}, l.tooLarge()
	}
	return f.Stats(), nil
}

func (l *Layered) read(ctx context.Context, r *tar.Reader, f *unpack.Filter, t *layerTree) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = path.Clean(h.Name)
		ok, err := f.Accept(h)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		n, err := t.add(h)
		if err == nil && n != nil && h.Typeflag == tar.TypeReg {
			err = l.store(ctx, n, r)
		}
		if err != nil {
			return fmt.Errorf("entry %.100q: %w", h.Name, err)
		}
	}
}

// store copies the content of a file to the spool.
func (l *Layered) store(ctx context.Context, n *node, r io.Reader) error {
	off := l.end
	size, err := io.Copy(l.spool, contextReader{io.LimitReader(r, l.limit-off+1), ctx.Err})
	l.end += size
	if err != nil {
		return fmt.Errorf("copy content: %w", err)
	}
	if l.end > l.limit {
		return l.tooLarge()
	}
	n.size = size
	n.open = func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(l.spool, off, size)), nil }
	return nil
}

func (l *Layered) tooLarge() error {
	return fmt.Errorf("%w: files of the image's layers take more than %d bytes together", unpack.ErrLimit, l.limit)
}

// contextReader ends with a context.
type contextReader struct {
	io.Reader

	err func() error
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// total returns the size of all files below a node. It stops counting where that would overflow.
func (n *node) total() int64 {
	sum := n.size
	for _, c := range n.children {
		if sum += c.total(); sum < 0 {
			return 1<<63 - 1
		}
	}
	return sum
}

// merge puts the folder of a layer upon the same folder of those below, as overlayfs shows it: of folders that both have
// the upper one has the attributes, anything else hides what is below.
func merge(lower, upper *node) {
	if upper.opaque {
		clear(lower.children)
	}
	for name, c := range upper.children {
		below := lower.children[name]
		switch {
		case c.isWhiteout():
			delete(lower.children, name)
		case c.mode.IsDir():
			if below == nil || !below.mode.IsDir() {
				below = newDir(0)
				lower.children[name] = below
			}
			below.mode, below.uid, below.gid, below.xattrs = c.mode, c.uid, c.gid, c.xattrs
			merge(below, c)
		default:
			lower.children[name] = c
		}
	}
}

// addImages puts root file systems of images into their places, where nothing may be yet.
func (n *node) addImages(images map[string]*Layered) error {
	for _, p := range slices.Sorted(maps.Keys(images)) {
		name := path.Clean(p)
		if !path.IsAbs(name) || name == "/" {
			return fmt.Errorf("place of an image %.100q is not absolute", p)
		}
		name = name[1:]
		if n.lookup(name) != nil {
			return fmt.Errorf("/%s, where an image is to lie, is there already", name)
		}
		if err := n.put(name, images[p].root); err != nil {
			return err
		}
	}
	return nil
}
