// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Names with a meaning, see the OCI image specification v1.1, "Image Layer Filesystem Changeset", and aufs.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// convertWhiteout returns an archive.ConvertWhiteout for a layer below root. It tells by opaque whether the layer hides
// everything below it: overlayfs heeds no mark on the roots of its layers.
func convertWhiteout(root string, opaque *bool) func(h *tar.Header, path string) (write bool, err error) {
	return func(h *tar.Header, path string) (bool, error) {
		if filepath.Clean(path) == filepath.Join(root, whiteoutOpaque) {
			*opaque = true
			return false, nil
		}
		return convertEntry(h, path)
	}
}

// convertEntry writes what hides something of the layers below as overlayfs has it. Whiteouts are about those layers only,
// wherever they stand in the tar: what this layer has itself stays, and a folder that it has both hidden and made anew
// hides the one below. path lies in a folder that was resolved already.
func convertEntry(h *tar.Header, path string) (write bool, err error) {
	dir, base := filepath.Split(path)
	switch {
	case base == whiteoutOpaque:
		return false, setOpaque(filepath.Clean(dir))
	case strings.HasPrefix(base, whiteoutMeta):
		return false, nil // what aufs kept for itself
	case strings.HasPrefix(base, whiteoutPrefix):
		return false, hide(filepath.Join(dir, strings.TrimPrefix(base, whiteoutPrefix)))
	case h.Typeflag != tar.TypeDir:
		return true, nil
	}
	hidden, err := isWhiteout(path)
	if err != nil || !hidden {
		return err == nil, err
	}
	if err := os.Remove(path); err != nil {
		return false, err
	}
	if err := os.Mkdir(path, 0o700); err != nil { // its mode is set with its owner
		return false, err
	}
	return true, setOpaque(path)
}

func hide(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return os.NewSyscallError("mknod", unix.Mknod(path, unix.S_IFCHR, 0))
	case err != nil:
		return err
	case info.IsDir():
		return setOpaque(path)
	}
	return nil
}

func setOpaque(dir string) error {
	if err := unix.Lsetxattr(dir, "trusted.overlay.opaque", []byte{'y'}, 0); err != nil {
		return fmt.Errorf("make folder opaque: %w", err)
	}
	return nil
}

// isWhiteout tells whether path is a character device 0:0. Devices of images are left out, so nothing else is one.
func isWhiteout(path string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return info.Mode()&fs.ModeCharDevice != 0, nil
}
