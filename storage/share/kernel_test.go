// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package share

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/internal/testns"
	"github.com/cloister-cc/cloister/storage/mount"
)

// TestMounts: the host writes into no mount below the shared folder, whose files are not its own; such a mount may be the
// source of a bind mount.
func TestMounts(t *testing.T) {
	if !testns.Inside(t) {
		return
	}
	d, root, _ := open(t)
	at := filepath.Join(root, "mount")
	if err := d.Copy(file(at, dir|0o755, "")); err != nil {
		t.Fatal(err)
	}
	if err := mount.Mount("tmpfs", at, "tmpfs", nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.Detach(at); err != nil {
			t.Error(err)
		}
	})
	before := tree(t, at)
	for _, f := range []File{
		file(at, dir|0o700, ""), file(at+"/x", dir|0o700, ""), file(at+"/x", reg|0o700, "data"), file(at+"/x", link|0o700, "data"), file(at+"/x/y", reg|0o700, "data"),
	} {
		if err := d.Copy(f); !errors.Is(err, unix.EXDEV) {
			t.Errorf("%s, %o: %v", f.Path, f.Mode, err)
		}
	}
	if err := d.Copy(file(at, reg|0o700, "")); err == nil {
		t.Error("a mount point was replaced")
	}
	if after := tree(t, at); after != before {
		t.Errorf("the mount changed from\n%s to\n%s", before, after)
	}
	f, err := d.OpenBeneath(at)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Errorf("file system %#x, %v", fs.Type, err)
	}
}
