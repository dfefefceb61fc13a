// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/anatol/luks.go"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/testbed"
)

// TestRealGuest builds guests of the test bed's kernels and binaries (crun stands in for the agent), and unlocks the
// disk with the key from the initramfs.
func TestRealGuest(t *testing.T) {
	t.Parallel()
	for _, arch := range initramfs.Architectures() {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			bed, err := testbed.Load(os.Getenv("CLOISTER_CACHE"), arch)
			if err != nil && os.Getenv("REQUIRE_QEMU") == "1" {
				t.Fatal(err)
			} else if err != nil {
				t.Skip(err)
			}
			rootfs := t.TempDir()
			if err := os.WriteFile(filepath.Join(rootfs, "motd"), []byte("hello\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			res, err := guestimage.Build(t.Context(), guestimage.Options{
				Arch: arch, Rootfs: rootfs, Kernel: bed.Kernel, ModulesDir: bed.ModulesDir,
				Agent: bed.Crun, Crun: bed.Crun, Pause: bed.Pause, Output: filepath.Join(t.TempDir(), "guest"),
			})
			if err != nil {
				t.Fatal(err)
			}
			if res.Guest.KernelRelease != bed.KernelVersion {
				t.Errorf("kernel release %q, want %q", res.Guest.KernelRelease, bed.KernelVersion)
			}
			unlock(t, res)
		})
	}
}

func unlock(t *testing.T, res *guestimage.Result) {
	t.Helper()
	d, err := luks.Open(res.Disk)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	key := content(t, res.Initramfs, layout.DiskKeyPath)
	if _, err := d.UnsealVolume(0, key); err != nil {
		t.Errorf("the key in the initramfs does not open the disk: %v", err)
	}
	key[0] ^= 1
	if _, err := d.UnsealVolume(0, key); err == nil {
		t.Error("another key opens the disk, too")
	}
}

// content returns one file of an initramfs.
func content(t *testing.T, image, path string) []byte {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, closer, err := initramfs.NewImageReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			t.Fatalf("no %s in the initramfs", path)
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Path != path {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
}
