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
}

// Defaults of Limits.
const (
	DefaultSize  = 16 << 30
	DefaultFiles = 500_000
	DefaultNames = 64 << 20
	// maxName is the size of one name, the kernel's PATH_MAX.
	maxName = 4095
)

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
	names   int64
	entries int
	devices int
}

// accept implements archive.Filter. Devices are left out: a container gets those that its spec lists, never the
// image's, and a character device 0:0 would be a whiteout that the layer's diff does not show.
func (f *filter) accept(h *tar.Header) (bool, error) {
	if f.entries++; f.entries > f.limits.Files {
		return false, fmt.Errorf("%w: more than %d files", ErrLimit, f.limits.Files)
	}
	if len(h.Name) > maxName || len(h.Linkname) > maxName {
		return false, fmt.Errorf("%w: a name is longer than %d bytes", ErrLimit, maxName)
	}
	if f.names += int64(len(h.Name) + len(h.Linkname)); f.names > f.limits.Names {
		return false, fmt.Errorf("%w: names of more than %d bytes", ErrLimit, f.limits.Names)
	}
	// A sparse file is a few bytes in the stream and h.Size bytes on disk.
	if h.Size < 0 || h.Size > f.limits.Size-f.size {
		return false, fmt.Errorf("%w: files of more than %d bytes", ErrLimit, f.limits.Size)
	}
	f.size += h.Size
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
	}
	return true, nil
}
