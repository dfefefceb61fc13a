// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// readTar reads a tar archive; contents of files, at most limit bytes, go to spool.
func readTar(ctx context.Context, archive io.Reader, spool *os.File, limit int64) (*node, error) {
	head := make([]byte, 6)
	n, err := io.ReadFull(archive, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read tar archive: %w", err)
	}
	head = head[:n]
	for name, magic := range map[string]string{"gzip": "\x1f\x8b", "zstd": "\x28\xb5\x2f\xfd", "xz": "\xfd7zXZ\x00", "bzip2": "BZh"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return nil, fmt.Errorf("tar archive is compressed with %s: decompress it first", name)
		}
	}
	t := &tarReader{r: tar.NewReader(io.MultiReader(bytes.NewReader(head), archive)), spool: spool, limit: limit, root: newDir(0o755)}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := t.r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read tar archive: %w", err)
		}
		if err := t.add(h); err != nil {
			return nil, fmt.Errorf("tar entry %.64q: %w", h.Name, err)
		}
	}
	if t.entries == 0 {
		return nil, errors.New("tar archive is empty")
	}
	return t.root, nil
}

type tarReader struct {
	r       *tar.Reader
	root    *node
	entries int
	spool   *os.File
	end     int64 // of what was written to spool
	limit   int64 // of end
}

func (t *tarReader) add(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // git archive writes one; it names no file
	}
	t.entries++
	name, err := tarPath(h.Name)
	if err != nil {
		return err
	}
	n := &node{mode: tarMode(h.Mode), uid: h.Uid, gid: h.Gid, xattrs: tarXattrs(h)}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		if err := t.store(n); err != nil {
			return err
		}
	case tar.TypeLink:
		if n, err = t.hardLink(h.Linkname); err != nil {
			return err
		}
	case tar.TypeSymlink:
		n.mode = fs.ModeSymlink | 0o777
		n.target = h.Linkname
	case tar.TypeDir:
		n.mode |= fs.ModeDir
		n.children = map[string]*node{}
	case tar.TypeChar, tar.TypeBlock:
		n.mode |= fs.ModeDevice
		if h.Typeflag == tar.TypeChar {
			n.mode |= fs.ModeCharDevice
		}
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return fmt.Errorf("device number %d:%d", h.Devmajor, h.Devminor)
		}
		n.rdev = deviceNumber(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeFifo:
		n.mode |= fs.ModeNamedPipe
	default:
		return fmt.Errorf("entry of type %q is not supported", h.Typeflag)
	}
	return t.root.put(name, n)
}

// tarMode returns the permission bits of an entry; its type comes from the type flag alone.
func tarMode(bits int64) fs.FileMode {
	mode := fs.FileMode(bits & 0o777)
	for bit, m := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if bits&bit != 0 {
			mode |= m
		}
	}
	return mode
}

// store copies the content of the current entry to the spool file.
func (t *tarReader) store(n *node) error {
	off := t.end
	size, err := io.Copy(t.spool, io.LimitReader(t.r, t.limit-off+1)) // a sparse entry can claim any size
	t.end += size
	if err != nil {
		return fmt.Errorf("copy content: %w", err)
	}
	if t.end > t.limit {
		return fmt.Errorf("files of the archive hold more than %d bytes", t.limit)
	}
	n.size = size
	n.open = func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(t.spool, off, size)), nil }
	return nil
}

// hardLink returns a copy of the file that an earlier entry made: the image has no hard links.
func (t *tarReader) hardLink(target string) (*node, error) {
	name, err := tarPath(target)
	if err != nil {
		return nil, fmt.Errorf("hard link: %w", err)
	}
	n := t.root.lookup(name)
	if n == nil {
		return nil, fmt.Errorf("hard link to %.64q, which no earlier entry holds", target)
	}
	if n.mode.IsDir() {
		return nil, fmt.Errorf("hard link to the directory %.64q", target)
	}
	c := *n
	return &c, nil
}

// tarPath turns an entry's name into a path relative to the root. Names that lead elsewhere are refused.
func tarPath(name string) (string, error) {
	if name == "" {
		return "", errors.New("entry without a name")
	}
	if strings.HasPrefix(name, "/") {
		return "", errors.New("name is absolute: make the archive with paths relative to the root")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New(`name with ".." leads out of the root`)
		}
	}
	return path.Clean(name), nil
}

// tarXattrs returns the extended attributes of an entry that keepXattr wants.
func tarXattrs(h *tar.Header) map[string]string {
	xattrs := map[string]string{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok && keepXattr(name) {
			xattrs[name] = value
		}
	}
	return xattrs
}
