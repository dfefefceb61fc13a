// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/se"
)

// seal writes image and manifest: both, or nothing.
func (c *seCreate) seal(ctx context.Context, o *se.CreateOptions, in *sealInputs, m *sealManifest) (err error) {
	if _, err := os.Lstat(c.output); err == nil && !c.overwrite {
		return fmt.Errorf("%s is there already: give --overwrite to replace it", c.output)
	}
	tmp, err := os.CreateTemp(filepath.Dir(c.output), "."+filepath.Base(c.output)+".*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tmp.Close(), removeIfThere(tmp.Name())) }()
	img, err := se.Create(ctx, &earlyWriter{File: tmp}, *o)
	if err != nil {
		return err
	}
	if in.guest != nil {
		if err := in.compare(); err != nil {
			return err
		}
	}
	m.describe(img, in)
	m.Output, m.Size = filepath.Base(c.output), img.Size
	if !c.clear { // sealed, it is for everybody; else it stays with its owner
		if err := tmp.Chmod(0o644); err != nil {
			return err
		}
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	return c.publish(tmp.Name(), in, m)
}

// writeBehind is how much earlyWriter lets gather in memory, in bytes.
const writeBehind = 16 << 20

// earlyWriter has the kernel write to the disk what has been written so far, so that the final sync does not take as long
// as everything before it.
type earlyWriter struct {
	*os.File
	gathered int64
}

// WriteAt implements io.WriterAt.
func (w *earlyWriter) WriteAt(p []byte, at int64) (int, error) {
	n, err := w.File.WriteAt(p, at)
	if w.gathered += int64(n); w.gathered >= writeBehind && err == nil {
		w.gathered = 0
		// Not every file system can; the sync in the end does it all then.
		_ = unix.SyncFileRange(int(w.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return n, err
}

// publish puts image, manifest and, for a guest, its description into place.
func (c *seCreate) publish(tmp string, in *sealInputs, m *sealManifest) error {
	if err := m.write(c.output + ".json"); err != nil {
		return err
	}
	if err := os.Rename(tmp, c.output); err != nil {
		return err
	}
	if in.guest == nil || filepath.Dir(c.output) != filepath.Clean(c.guest) {
		return nil
	}
	in.guest.Sealed = &guestimage.Sealed{File: m.Output, Size: m.Size, HeaderTag: m.Tag, HostKeysVerified: !c.noVerify}
	return guestimage.Save(c.guest, in.guest)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// compare makes sure that what was sealed is what the guest's description says.
func (i *sealInputs) compare() error {
	for _, f := range []struct {
		file *hashedFile
		want guestimage.FileInfo
	}{{i.kernel, i.guest.Files.Kernel}, {i.ramdisk, i.guest.Files.Initramfs}} {
		if got := hex.EncodeToString(f.file.sum.Sum(nil)); got != f.want.SHA256 {
			return fmt.Errorf("%s is not what %s describes (sha256 %s): build the guest again", f.file.Name(), guestimage.GuestFile, got)
		}
	}
	return nil
}
