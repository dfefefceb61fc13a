// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// Limits of Linux and erofs that a source may not exceed, in bytes.
const (
	maxName       = 255
	maxPath       = 4095
	maxLinkTarget = 4095
	maxXattrName  = 255
	maxXattrValue = 65535
)

// node is one file of the root file system to write.
type node struct {
	mode     fs.FileMode // type and permissions, in Go's notation
	uid, gid int
	rdev     uint32 // of devices, as stat(2) shows it in 32 bits
	target   string // of symbolic links
	xattrs   map[string]string
	children map[string]*node // of directories
	opaque   bool             // of directories in a layer: hides what lower layers have there

	// Content of regular files: size bytes. open may be nil if size is 0, and is called when the content is wanted.
	size int64
	open func() (io.ReadCloser, error)
}

func newDir(mode fs.FileMode) *node {
	return &node{mode: fs.ModeDir | mode, children: map[string]*node{}}
}

// names returns the names of a directory's children in order.
func (n *node) names() []string { return slices.Sorted(maps.Keys(n.children)) }

// checkPath says what is wrong with the path of a source's entry, relative to its root.
func checkPath(name string) error {
	if !fs.ValidPath(name) || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%q is not a path below the root", name)
	}
	if len(name) > maxPath {
		return fmt.Errorf("path of %d bytes is longer than %d: %.64q…", len(name), maxPath, name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > maxName {
			return fmt.Errorf("file name of %d bytes is longer than %d: %.64q…", len(part), maxName, part)
		}
	}
	return nil
}

// check says what is wrong with a node that erofs cannot hold.
func (n *node) check() error {
	switch n.mode.Type() {
	case 0, fs.ModeDir, fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice, fs.ModeNamedPipe:
	case fs.ModeSymlink:
		if n.target == "" || len(n.target) > maxLinkTarget || strings.ContainsRune(n.target, 0) {
			return fmt.Errorf("symbolic link's target has %d bytes or a zero byte, want 1 to %d", len(n.target), maxLinkTarget)
		}
	default:
		return fmt.Errorf("a %s cannot be part of a root file system image", typeName(n.mode))
	}
	if n.size < 0 {
		return fmt.Errorf("file size %d", n.size)
	}
	if n.uid < 0 || n.gid < 0 || int64(n.uid) > maxID || int64(n.gid) > maxID {
		return fmt.Errorf("owner %d:%d", n.uid, n.gid)
	}
	for name, value := range n.xattrs {
		if len(name) > maxXattrName || len(value) > maxXattrValue {
			return fmt.Errorf("extended attribute %.64q is too long", name)
		}
	}
	return nil
}

// maxID is the largest user or group; the kernel takes 2^32-1 for "none".
const maxID = 1<<32 - 2

func typeName(m fs.FileMode) string {
	if m.Type() == fs.ModeSocket {
		return "socket"
	}
	return "file of type " + m.Type().String()
}

// keepXattr tells which extended attributes go into the image. Labels and ACLs of the build host do not.
func keepXattr(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.")
}

// lookup returns the node of a valid path, or nil. It follows no symbolic link.
func (n *node) lookup(name string) *node {
	if name == "." {
		return n
	}
	for part := range strings.SplitSeq(name, "/") {
		if n = n.children[part]; n == nil {
			return nil
		}
	}
	return n
}

// put adds a node, and parents that no entry has named. It replaces what was there before, as tar does, but a directory
// that becomes one again keeps its children.
func (n *node) put(name string, child *node) error {
	if err := checkPath(name); err != nil {
		return err
	}
	if err := child.check(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if name == "." {
		if !child.mode.IsDir() {
			return fmt.Errorf("the root is a %s, not a directory", child.mode.Type())
		}
		child.children = n.children
		*n = *child
		return nil
	}
	parent := n
	if dir := path.Dir(name); dir != "." {
		for part := range strings.SplitSeq(dir, "/") {
			next := parent.children[part]
			if next == nil {
				next = newDir(0o755)
				parent.children[part] = next
			}
			if !next.mode.IsDir() {
				return fmt.Errorf("%s: %s is not a directory but a %s", name, part, next.mode.Type())
			}
			parent = next
		}
	}
	old := parent.children[path.Base(name)]
	if old != nil && old.mode.IsDir() {
		if !child.mode.IsDir() && len(old.children) > 0 {
			return fmt.Errorf("%s: replaces a directory that is not empty", name)
		}
		if child.mode.IsDir() {
			child.children = old.children
		}
	}
	parent.children[path.Base(name)] = child
	return nil
}

// addMountPoints adds what the agent mounts over in the running guest, as far as the source lacks it. The root is
// read-only there, so it cannot do so itself.
func (n *node) addMountPoints() error {
	for _, dir := range mountPoints() {
		old := n.children[dir]
		switch {
		case old == nil:
			mode := fs.FileMode(0o755)
			if dir == "tmp" {
				mode = 0o777 | fs.ModeSticky
			}
			n.children[dir] = newDir(mode)
		case !old.mode.IsDir():
			return fmt.Errorf("/%s is a %s, but the agent needs a directory to mount over", dir, old.mode.Type())
		}
	}
	etc := n.children["etc"]
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		if etc.children[name] == nil {
			etc.children[name] = &node{mode: 0o644}
		}
	}
	return nil
}

// mountPoints are the directories that the agent needs in the root.
func mountPoints() []string { return []string{"proc", "sys", "dev", "run", "tmp", "var", "etc"} }
