// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Limits on an archive.
const (
	// maxArchiveFiles is the number of entries.
	maxArchiveFiles = 16384
	// maxLinks is how many symbolic links lead to a file.
	maxLinks = 8
)

// tarTree finds files in an uncompressed tar.
type tarTree struct {
	f     io.ReaderAt
	close func() error
	files map[string]tarEntry
}

// tarEntry is a file, or a link to one.
type tarEntry struct {
	offset, size int64
	link         string
}

// openTar reads the table of contents of a tar.
func openTar(name string) (*tarTree, error) {
	f, err := os.Open(name) // the user's file
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	var t *tarTree
	if err == nil {
		t, err = indexTar(f, info.Size())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("archive %s: %w", name, err), f.Close())
	}
	t.close = f.Close
	return t, nil
}

// indexTar notes where in a tar of size bytes each file begins.
func indexTar(r io.ReaderAt, size int64) (*tarTree, error) {
	t := &tarTree{f: r, close: func() error { return nil }, files: make(map[string]tarEntry)}
	section := io.NewSectionReader(r, 0, size)
	tr := tar.NewReader(section)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("not an uncompressed tar: %w", err)
		}
		if n == maxArchiveFiles {
			return nil, fmt.Errorf("more than %d files", maxArchiveFiles)
		}
		offset, err := section.Seek(0, io.SeekCurrent) // tar reads whole headers and no further
		if err != nil {
			return nil, err
		}
		if err := t.add(h, offset, size); err != nil {
			return nil, err
		}
	}
}

func (t *tarTree) add(h *tar.Header, offset, size int64) error {
	name := path.Clean(h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return fmt.Errorf("file %.200q is sparse", h.Name)
			}
		}
		if h.Size < 0 || h.Size > size-offset {
			return fmt.Errorf("file %.200q goes beyond the end", h.Name)
		}
		t.files[name] = tarEntry{offset: offset, size: h.Size}
	case tar.TypeSymlink:
		t.files[name] = tarEntry{link: path.Join(path.Dir(name), h.Linkname)} //nolint:gosec // G305: a key of this map, never a file
	case tar.TypeLink:
		t.files[name] = tarEntry{link: path.Clean(h.Linkname)}
	case tar.TypeDir, tar.TypeXGlobalHeader:
	default:
		return fmt.Errorf("file %.200q is of type %q", h.Name, h.Typeflag)
	}
	return nil
}

// entry finds a file, through links. Links lead to other files of the archive and nowhere else.
func (t *tarTree) entry(name string) (tarEntry, error) {
	clean := path.Clean(name)
	for range maxLinks {
		e, ok := t.files[clean]
		if !ok {
			break
		}
		if e.link == "" {
			return e, nil
		}
		clean = e.link
	}
	return tarEntry{}, fmt.Errorf("archive has no %.200s: %w", name, fs.ErrNotExist)
}

func (t *tarTree) open(name string) (io.ReadCloser, int64, error) {
	e, err := t.entry(name)
	if err != nil {
		return nil, 0, err
	}
	return io.NopCloser(io.NewSectionReader(t.f, e.offset, e.size)), e.size, nil
}

// Close closes the archive.
func (t *tarTree) Close() error { return t.close() }
