// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/cloister-cc/cloister/image/unpack"
)

// Names with a meaning, see the OCI image specification v1.1, "Image Layer Filesystem Changeset", and aufs.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// maxSymlinks bounds the symbolic links on the way to one entry.
const maxSymlinks = 255

// layerTree is one layer by itself, in memory, as image/unpack writes it to a disk of its own: entries are found through
// the layer's symbolic links, which lead nowhere outside of it, and what hides something of the layers below is a
// whiteout or an opaque folder, wherever it stands in the tar. Names that are linked to each other share a node.
type layerTree struct {
	root *node
	left int // nodes that may still be made
}

// newWhiteout returns what overlayfs takes for a whiteout. Nothing else in a layer is a device.
func newWhiteout() *node { return &node{mode: fs.ModeDevice | fs.ModeCharDevice} }

func (n *node) isWhiteout() bool { return n.mode&fs.ModeCharDevice != 0 }

// add makes what an entry stands for, without content. It returns no node where there is no file for the entry.
func (t *layerTree) add(h *tar.Header) (*node, error) {
	full := path.Clean("/" + h.Name)
	if full == "/" {
		return nil, nil //nolint:nilnil // the root's attributes come from elsewhere, as in a guest
	}
	parent, base, err := t.parent(full)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return nil, t.hide(parent, base)
	}
	var n *node
	if h.Typeflag == tar.TypeDir {
		n, err = t.dir(parent, base)
	} else {
		n, err = t.file(parent, base, h)
	}
	if err != nil {
		return nil, err
	}
	return n, n.setAttributes(h)
}

// parent returns the folder of a path, which is made if need be, and the path's last part.
func (t *layerTree) parent(full string) (*node, string, error) {
	dirs, err := t.resolve(path.Dir(full))
	if err != nil {
		return nil, "", err
	}
	base := path.Base(full)
	if err := checkPath(path.Join(append(dirs, base)...)); err != nil {
		return nil, "", err
	}
	n := t.root
	for _, name := range dirs {
		next := n.children[name]
		if next == nil {
			if next, err = t.put(n, name, newDir(0o755)); err != nil {
				return nil, "", err
			}
		}
		if !next.mode.IsDir() {
			return nil, "", fmt.Errorf("%.100s is not a folder", name)
		}
		n = next
	}
	return n, base, nil
}

// put makes a new node.
func (t *layerTree) put(parent *node, name string, n *node) (*node, error) {
	if t.left--; t.left < 0 { // entries have a limit, but one can name folders that no other does
		return nil, fmt.Errorf("%w: too many files and folders", unpack.ErrLimit)
	}
	parent.children[name] = n
	return n, nil
}

// resolve follows symbolic links on the way to a folder, inside the layer's root. What is not there stays as it is.
func (t *layerTree) resolve(dir string) ([]string, error) {
	todo := strings.Split(dir, "/")
	var way []*node // nil where nothing is
	var names []string
	links := 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if n := len(names); n > 0 {
				way, names = way[:n-1], names[:n-1]
			}
			continue
		}
		at := t.root
		if n := len(way); n > 0 {
			at = way[n-1]
		}
		var next *node
		if at != nil {
			next = at.children[part]
		}
		if next == nil || next.mode&fs.ModeSymlink == 0 {
			if way, names = append(way, next), append(names, part); len(names) > maxPath {
				return nil, errors.New("path has too many parts")
			}
			continue
		}
		if links++; links > maxSymlinks {
			return nil, errors.New("too many symbolic links on the way")
		}
		if path.IsAbs(next.target) {
			way, names = nil, nil
		}
		todo = append(strings.Split(next.target, "/"), todo...)
	}
	return names, nil
}

// hide makes a whiteout, or a folder opaque, of an entry whose name says so.
func (t *layerTree) hide(parent *node, base string) error {
	name := strings.TrimPrefix(base, whiteoutPrefix)
	switch {
	case base == whiteoutOpaque:
		parent.opaque = true
		return nil
	case name == "" || name == "." || name == "..":
		return errors.New("whiteout names no file")
	case strings.HasPrefix(base, whiteoutMeta):
		return nil // what aufs kept for itself
	}
	switch old := parent.children[name]; {
	case old == nil:
		_, err := t.put(parent, name, newWhiteout())
		return err
	case old.mode.IsDir():
		old.opaque = true
	}
	return nil
}

// dir returns the folder of an entry. One that is there keeps what it holds, one that is hidden hides that below.
func (t *layerTree) dir(parent *node, base string) (*node, error) {
	old := parent.children[base]
	if old != nil && old.mode.IsDir() {
		return old, nil
	}
	n := newDir(0)
	n.opaque = old != nil && old.isWhiteout()
	return t.put(parent, base, n)
}

// file makes the node of an entry that is not a folder, in place of whatever is there.
func (t *layerTree) file(parent *node, base string, h *tar.Header) (*node, error) {
	delete(parent.children, base)
	n := &node{}
	switch h.Typeflag {
	case tar.TypeReg:
	case tar.TypeSymlink:
		n.mode, n.target = fs.ModeSymlink, h.Linkname
	case tar.TypeFifo:
		n.mode = fs.ModeNamedPipe
	case tar.TypeLink:
		var err error
		if n, err = t.linked(h.Linkname); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("entry of type %q is not supported", h.Typeflag)
	}
	return t.put(parent, base, n)
}

// linked returns the file that a hard link leads to. A symbolic link at its end is not followed.
func (t *layerTree) linked(target string) (*node, error) {
	full := path.Clean("/" + target)
	dirs, err := t.resolve(path.Dir(full))
	if err != nil {
		return nil, err
	}
	n := t.root.lookup(path.Join(append(dirs, path.Base(full))...))
	switch {
	case n == nil || n.isWhiteout():
		return nil, fmt.Errorf("hard link to %.100q, which no earlier entry of the layer holds", target)
	case n.mode.IsDir():
		return nil, fmt.Errorf("hard link to the folder %.100q", target)
	}
	return n, nil
}

// setAttributes gives a node, and all names of it, the owner, mode and extended attributes of an entry.
func (n *node) setAttributes(h *tar.Header) error {
	kind := n.mode.Type()
	n.uid, n.gid = h.Uid, h.Gid
	n.mode = kind | tarMode(h.Mode)
	if kind == fs.ModeSymlink {
		n.mode = kind | 0o777
	}
	if kind == 0 || kind == fs.ModeDir { // others can have none of those that are kept
		for name, value := range tarXattrs(h) {
			if n.xattrs == nil {
				n.xattrs = make(map[string]string)
			}
			n.xattrs[name] = value
		}
	}
	return n.check()
}
