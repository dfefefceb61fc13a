// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/internal/qemu"
)

// Threat: the host holds the root disk and changes one bit of it. Observable: the guest says what is wrong and powers
// off. The content's flips are where the boot reads: the erofs superblock, and the top of the hash tree. (That every
// other block of a verity device is a read error too is shown by storage/verity's tests in the guest.)
func TestFlippedBitOnTheDisk(t *testing.T) {
	t.Parallel()
	w := need(t)
	g, err := guestimage.Load(w.guest)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		offset int64
		want   []string
	}{
		"binary header":    {40, []string{"differs from the pinned"}},
		"keyslot":          {g.Root.HeaderSize - 4096, []string{"differs from the pinned"}},
		"file system":      {g.Root.PayloadOffset + 1024, []string{"data block 0 is corrupted", "data or root hash is wrong"}},
		"root of the tree": {g.Root.PayloadOffset + g.Root.Verity.HashOffset, []string{"is corrupted", "data or root hash is wrong"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := copyWithFlip(t, filepath.Join(w.guest, g.Files.Disk.Name), tt.offset)
			vm := w.boot(t, w.guest, func(c *qemu.Config) { c.Disks = []string{disk} })
			wantPowerOff(t, vm, append(tt.want, "powering off")...)
		})
	}
}

// Threat: the host attaches the disk of another guest, which some other key opens. Observable: it is not tried.
func TestWrongDisk(t *testing.T) {
	t.Parallel()
	w := need(t)
	other, err := w.BuildGuest(t.Context(), "other", nil)
	if err != nil {
		t.Fatal(err)
	}
	vm := w.boot(t, w.guest, func(c *qemu.Config) { c.Disks = []string{filepath.Join(other, guestimage.DiskFile)} })
	wantPowerOff(t, vm, "differs from the pinned", "powering off")
}

func TestNoDisk(t *testing.T) {
	t.Parallel()
	w := need(t)
	vm := w.boot(t, w.guest, func(c *qemu.Config) { c.Disks = nil })
	wantPowerOff(t, vm, "no disk", "powering off")
}

// copyWithFlip copies a disk and flips the lowest bit of the byte at offset.
func copyWithFlip(t *testing.T, path string, offset int64) string {
	t.Helper()
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	flip(t, out, offset)
	return out.Name()
}

func flip(t *testing.T, f *os.File, offset int64) {
	t.Helper()
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
}
