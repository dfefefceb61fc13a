// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// writeTar writes the files below dir in the order of their names.
func writeTar(ctx context.Context, w io.Writer, dir string) error {
	t := &tarWriter{w: tar.NewWriter(w), dir: dir, links: make(map[inode]string)}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || path == dir {
			return err
		}
		return t.add(path, d)
	})
	if err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if err := t.w.Close(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	return nil
}

// inode identifies a file that may have several names.
type inode struct{ dev, ino uint64 }

type tarWriter struct {
	w     *tar.Writer
	dir   string
	links map[inode]string
}

func (t *tarWriter) add(path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	switch {
	case info.Mode()&fs.ModeSocket != 0:
		return nil
	case info.Mode()&fs.ModeDevice != 0:
		return fmt.Errorf("%s is a device node; a container gets those from its runtime", path)
	}
	h, err := t.header(path, info)
	if err != nil {
		return err
	}
	if err := t.w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(path) // the user's file
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	_, err = io.Copy(t.w, f)
	return err
}

// header returns a header that depends on nothing but name, kind, mode and content.
func (t *tarWriter) header(path string, info fs.FileInfo) (*tar.Header, error) {
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(path); err != nil {
			return nil, err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, err
	}
	name, err := filepath.Rel(t.dir, path)
	if err != nil {
		return nil, err
	}
	h.Name = filepath.ToSlash(name)
	if info.IsDir() {
		h.Name += "/"
	}
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	h.ModTime, h.AccessTime, h.ChangeTime = time.Unix(0, 0), time.Time{}, time.Time{}
	h.PAXRecords, h.Format = nil, tar.FormatPAX
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() && st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino} //nolint:unconvert // the type depends on the architecture
		if first, ok := t.links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			t.links[id] = h.Name
		}
	}
	return h, nil
}

// copyTar copies a tar as it is, once it is known to be one.
func copyTar(ctx context.Context, w io.Writer, r io.Reader) error {
	tee := io.TeeReader(r, w)
	for t := tar.NewReader(tee); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := t.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("root file system is neither a folder nor an uncompressed tar: %w", err)
		}
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return fmt.Errorf("copy tar: %w", err)
	}
	return nil
}
