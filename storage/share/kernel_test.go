// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package share

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/storage/mount"
)

// inNamespace runs the calling test again in a process with a mount namespace of its own (and, without root, a user
// namespace), and returns true there. Elsewhere it reports that process's outcome and returns false.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const marker = "CLOISTER_TEST_NAMESPACE"
	if os.Getenv(marker) == t.Name() {
		if err := mount.Mount("none", "/", "", []string{"rprivate"}); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, unix.EPERM) && os.Getenv("CLOISTER_GUEST") != "1":
		t.Skip("this machine allows no mount namespace")
	case err != nil:
		t.Errorf("in the namespace: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("in the namespace:\n%s", out)
	}
	return false
}

// TestMounts: the host writes into no mount below the shared folder, whose files are not its own; such a mount may be the
// source of a bind mount.
func TestMounts(t *testing.T) {
	if !inNamespace(t) {
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
