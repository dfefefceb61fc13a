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
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxContent bounds the contents of all files of a tar archive together, in bytes: 256 GiB.
const maxContent = 256 << 30

// openSource reads the names and attributes of a folder or tar archive. Contents of files are read later, through the
// tree, until close is called. scratch is a folder for temporary files.
func openSource(ctx context.Context, source, scratch string) (root *node, closeSource func(), err error) {
	st, err := os.Stat(source)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("open source: %w", err)
	case st.IsDir():
		return openFolder(ctx, source)
	case !st.Mode().IsRegular():
		return nil, nil, fmt.Errorf("source is a %s, want a folder or a tar archive", st.Mode().Type())
	}
	archive, err := os.Open(source)
	if err != nil {
		return nil, nil, fmt.Errorf("open source: %w", err)
	}
	defer func() { _ = archive.Close() }()
	spool, err := scratchFile(scratch)
	if err != nil {
		return nil, nil, err
	}
	root, err = readTar(ctx, archive, spool, maxContent)
	if err != nil {
		_ = spool.Close()
		return nil, nil, err
	}
	return root, func() { _ = spool.Close() }, nil
}

// openFolder reads a folder. Owners are kept when root reads it; otherwise everything belongs to root.
func openFolder(ctx context.Context, source string) (*node, func(), error) {
	dir, err := os.OpenRoot(source)
	if err != nil {
		return nil, nil, fmt.Errorf("open source: %w", err)
	}
	keepOwners := os.Geteuid() == 0
	root := newDir(0o755)
	err = fs.WalkDir(dir.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		n, err := folderNode(dir, source, name, keepOwners)
		if err != nil {
			return err
		}
		return root.put(name, n)
	})
	if err != nil {
		_ = dir.Close()
		return nil, nil, fmt.Errorf("read source: %w", err)
	}
	return root, func() { _ = dir.Close() }, nil
}

func folderNode(dir *os.Root, source, name string, keepOwners bool) (*node, error) {
	st, err := dir.Lstat(name)
	if err != nil {
		return nil, err
	}
	n := &node{mode: st.Mode()}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("%s: no owner known", name)
	}
	if keepOwners {
		n.uid, n.gid = int(sys.Uid), int(sys.Gid)
	}
	switch {
	case st.IsDir():
		n.children = map[string]*node{}
	case st.Mode()&fs.ModeSymlink != 0:
		if n.target, err = dir.Readlink(name); err != nil {
			return nil, err
		}
		return n, nil
	case st.Mode()&fs.ModeDevice != 0:
		n.rdev = deviceNumber(unix.Major(uint64(sys.Rdev)), unix.Minor(uint64(sys.Rdev))) //nolint:unconvert // 32 bits on some
	case st.Mode().IsRegular():
		n.size = st.Size()
		n.open = func() (io.ReadCloser, error) { return dir.Open(name) }
	}
	n.xattrs, err = folderXattrs(path.Join(source, name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// folderXattrs returns the extended attributes of a file that keepXattr wants.
func folderXattrs(name string) (map[string]string, error) {
	list := make([]byte, 64<<10) // the kernel's XATTR_LIST_MAX
	size, err := unix.Llistxattr(name, list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	xattrs := map[string]string{}
	for attr := range strings.SplitSeq(string(list[:size]), "\x00") {
		if !keepXattr(attr) {
			continue
		}
		value := make([]byte, maxXattrValue+1)
		n, err := unix.Lgetxattr(name, attr, value)
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %s: %w", attr, err)
		}
		xattrs[attr] = string(value[:n])
	}
	return xattrs, nil
}

// deviceNumber encodes a device number as erofs stores it, the kernel's new_encode_dev.
func deviceNumber(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}
