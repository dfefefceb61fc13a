// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Limits bound one layer. Zero fields take their defaults.
type Limits struct {
	// Size is the most bytes that a layer may have uncompressed, and that its files may have together. Default 16 GiB.
	Size int64
	// Files is the number of entries, default 500000.
	Files int
	// Names is the most bytes that the names of entries and links may have together, default 64 MiB.
	Names int64
	// Path is the most bytes that one name may have, default 4095, the kernel's PATH_MAX.
	Path int
	// Depth is how many folders may lie in each other, default 256.
	Depth int
}

// Defaults of Limits.
const (
	DefaultSize  = 16 << 30
	DefaultFiles = 500_000
	DefaultNames = 64 << 20
	DefaultPath  = 4095
	DefaultDepth = 256
)

// What a file takes on the disk besides its content, in bytes: about an inode, and the rest of the last block.
const (
	inodeSize = 1 << 10
	blockSize = 4 << 10
)

// capabilityRecord is the tar record of a file's capabilities.
const capabilityRecord = "SCHILY.xattr.security.capability"

// ErrLimit means that a layer is larger than it may be.
var ErrLimit = errors.New("layer exceeds a limit")

func (l Limits) withDefaults() Limits {
	if l.Size <= 0 {
		l.Size = DefaultSize
	}
	if l.Files <= 0 {
		l.Files = DefaultFiles
	}
	if l.Names <= 0 {
		l.Names = DefaultNames
	}
	if l.Path <= 0 {
		l.Path = DefaultPath
	}
	if l.Depth <= 0 {
		l.Depth = DefaultDepth
	}
	return l
}

// limitReader fails with ErrLimit after left bytes.
type limitReader struct {
	r     io.Reader
	left  int64
	limit int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	if l.left < 0 {
		return 0, l.err()
	}
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, l.err()
	}
	return n, err
}

func (l *limitReader) err() error {
	return fmt.Errorf("%w: more than %d bytes uncompressed", ErrLimit, l.limit)
}

// filter looks at every tar header before anything is written for it.
type filter struct {
	limits  Limits
	size    int64
	disk    int64
	names   int64
	entries int
	devices int
	// capable has the capabilities of files, by name.
	capable map[string]string
}

// accept implements archive.Filter. Devices are left out: a container gets those that its spec lists, never the
// image's, and a character device 0:0 would be a whiteout that the layer's diff does not show.
func (f *filter) accept(h *tar.Header) (bool, error) {
	if err := f.count(h); err != nil {
		return false, err
	}
	if strings.ContainsRune(h.Name, 0) || strings.ContainsRune(h.Linkname, 0) {
		return false, fmt.Errorf("layer has an entry %.100q with a NUL byte", h.Name)
	}
	if name := path.Clean(h.Name); name == ".." || strings.HasPrefix(name, "../") {
		return false, fmt.Errorf("layer has an entry %.100q outside its root", h.Name)
	}
	switch h.Typeflag {
	case tar.TypeChar, tar.TypeBlock:
		f.devices++
		return false, nil
	case tar.TypeXGlobalHeader:
		return false, nil
	case tar.TypeGNUSparse, tar.TypeCont:
		h.Typeflag = tar.TypeReg // what archive/tar makes of them; holes come as zeros, and are written as such
	}
	f.keepCapabilities(h)
	return true, nil
}

// keepCapabilities gives a hard link the capabilities of its file where the tar does not repeat them: its owner is set,
// and with that the kernel drops what the file had.
func (f *filter) keepCapabilities(h *tar.Header) {
	name := path.Clean("/" + h.Name)
	caps, ok := h.PAXRecords[capabilityRecord]
	if h.Typeflag == tar.TypeLink && !ok {
		if caps, ok = f.capable[path.Clean("/"+h.Linkname)]; ok {
			if h.PAXRecords == nil {
				h.PAXRecords = make(map[string]string)
			}
			h.PAXRecords[capabilityRecord] = caps
		}
	}
	switch {
	case ok && f.capable == nil:
		f.capable = map[string]string{name: caps}
	case ok:
		f.capable[name] = caps
	default:
		delete(f.capable, name)
	}
}

// count holds an entry against the limits.
func (f *filter) count(h *tar.Header) error {
	if f.entries++; f.entries > f.limits.Files {
		return fmt.Errorf("%w: more than %d files", ErrLimit, f.limits.Files)
	}
	if len(h.Name) > f.limits.Path || len(h.Linkname) > f.limits.Path {
		return fmt.Errorf("%w: a name is longer than %d bytes", ErrLimit, f.limits.Path)
	}
	if strings.Count(path.Clean(h.Name), "/") >= f.limits.Depth {
		return fmt.Errorf("%w: more than %d folders in each other", ErrLimit, f.limits.Depth)
	}
	if f.names += int64(len(h.Name) + len(h.Linkname)); f.names > f.limits.Names {
		return fmt.Errorf("%w: names of more than %d bytes", ErrLimit, f.limits.Names)
	}
	// A sparse file is a few bytes in the stream and h.Size bytes on disk.
	if h.Size < 0 || h.Size > f.limits.Size-f.size {
		return fmt.Errorf("%w: files of more than %d bytes", ErrLimit, f.limits.Size)
	}
	f.size += h.Size
	f.disk += inodeSize + (h.Size+blockSize-1)/blockSize*blockSize
	return nil
}
