// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/internal/testns"
)

// mountLine returns the options that /proc/self/mountinfo shows for a mount point, "" if there is none.
func mountLine(t *testing.T, target string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	line := ""
	for l := range strings.Lines(string(data)) {
		if f := strings.Fields(l); f[4] == target {
			line = l // the last is the uppermost
		}
	}
	return line
}

func mkdir(t *testing.T, name string) string {
	t.Helper()
	if err := os.MkdirAll(name, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestMount(t *testing.T) {
	if !testns.Inside(t) {
		return
	}
	dir := t.TempDir()
	a, b := mkdir(t, filepath.Join(dir, "a")), mkdir(t, filepath.Join(dir, "b"))
	if err := Mount("tmpfs", a, "tmpfs", []string{"nosuid", "mode=711", "size=64k"}); err != nil {
		t.Fatal(err)
	}
	if line := mountLine(t, a); !strings.Contains(line, "nosuid") || !strings.Contains(line, "mode=711") || !strings.Contains(line, "size=64k") {
		t.Errorf("mounted as %q", line)
	}
	if err := os.WriteFile(filepath.Join(a, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}

	if err := Mount(a, b, "", []string{"bind", "ro", "nosuid", "noexec"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b, "file"), []byte("y"), 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through the read-only bind mount: %v", err)
	}
	if line := mountLine(t, b); !strings.Contains(line, "noexec") {
		t.Errorf("bound as %q", line)
	}

	if err := Unmount(b); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(b); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), b) {
		t.Errorf("unmount of no mount: %v", err)
	}

	open, err := os.Open(filepath.Join(a, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(a); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmount of a busy mount: %v", err)
	}
	if err := Detach(a); err != nil {
		t.Fatal(err)
	}
	if mountLine(t, a) != "" {
		t.Error("still mounted after Detach")
	}
	_ = open.Close()
}

// TestMountUndone has the second of two system calls fail: the first must not stay.
func TestMountUndone(t *testing.T) {
	if !testns.Inside(t) {
		return
	}
	dir := t.TempDir()
	a := mkdir(t, filepath.Join(dir, "a"))
	err := apply([]call{{"tmpfs", a, "tmpfs", 0, ""}, {"", a, "", unix.MS_PRIVATE | unix.MS_SHARED, ""}}) // two at once
	if !errors.Is(err, unix.EINVAL) || mountLine(t, a) != "" {
		t.Errorf("second call: %v, mounted: %q", err, mountLine(t, a))
	}
	if err := Mount("tmpfs", a, "tmpfs", []string{"size=bad"}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("bad data: %v", err)
	}
	if err := Mount("none", filepath.Join(dir, "none"), "tmpfs", nil); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no mount point: %v", err)
	}
}

func TestOverlay(t *testing.T) {
	if !testns.Inside(t) {
		return
	}
	base := t.TempDir()
	if err := Mount("tmpfs", base, "tmpfs", nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Detach(base) })
	var lower []string
	for i := range 3 {
		dir := mkdir(t, filepath.Join(base, fmt.Sprintf("layer:%d,x", i)))
		for _, name := range []string{"same", fmt.Sprintf("only-%d", i)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte{byte('0' + i)}, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		lower = append([]string{dir}, lower...)
	}
	target, upper, work := mkdir(t, filepath.Join(base, "merged")), mkdir(t, filepath.Join(base, "up,per")), mkdir(t, filepath.Join(base, "work"))
	err := Overlay(target, lower, upper, work)
	if (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM)) && os.Getenv("CLOISTER_GUEST") != "1" {
		t.Skipf("this machine's kernel mounts no overlay: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(target, "same")); err != nil || string(data) != "2" {
		t.Errorf("uppermost layer: %q, %v", data, err)
	}
	if err := os.WriteFile(filepath.Join(target, "same"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(upper, "same")); err != nil || string(data) != "new" {
		t.Errorf("upper folder: %q, %v", data, err)
	}
	readOnly := mkdir(t, filepath.Join(base, "ro"))
	if err := Overlay(readOnly, lower, "", ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(readOnly, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only overlay: %v", err)
	}
	if _, err := os.Stat(filepath.Join(readOnly, "only-0")); err != nil {
		t.Error(err)
	}
}
