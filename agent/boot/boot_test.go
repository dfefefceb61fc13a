// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"bytes"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRunRefusesOutsidePID1(t *testing.T) {
	if _, err := Run(t.Context(), Options{Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Fatal("Run worked although this is not PID 1")
	}
}

// A file's pages are the file in an initramfs: whoever holds the file open (or scans memory) after the wipe must see
// zeros, not only a missing name.
func TestWipeTreeOverwritesInPlace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	path := filepath.Join(dir, "image-keys", "default", "key", "1")
	write(t, path, strings.Repeat("canary", 1000))
	held, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := wipeTree(dir); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6000)
	if n, err := held.ReadAt(got, 0); n != 6000 || err != nil {
		t.Fatalf("read %d bytes of the held file: %v", n, err)
	}
	if !bytes.Equal(got, make([]byte, 6000)) {
		t.Error("the file's content is still there")
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("folder is still there: %v", err)
	}
}

func TestReadSecretBounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, maxSecretFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecret(path); err == nil {
		t.Error("a file over the limit was read")
	}
}

func TestEmptyDirStaysInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "keep")
	write(t, outside, "x")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a", "b", "c"), "x")
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := emptyDir(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("the link's target was touched: %v", err)
	}
}

func TestSetSysctls(t *testing.T) {
	root := t.TempDir()
	for _, s := range sysctls[1:] { // the first is missing in this kernel
		write(t, filepath.Join(root, s.name), "")
	}
	if err := setSysctls(root); err != nil {
		t.Fatal(err)
	}
	for _, s := range sysctls[1:] {
		if got, err := os.ReadFile(filepath.Join(root, s.name)); err != nil || string(got) != s.value {
			t.Errorf("%s = %q, %v; want %q", s.name, got, err, s.value)
		}
	}
	if _, err := os.Stat(filepath.Join(root, sysctls[0].name)); !os.IsNotExist(err) {
		t.Errorf("a missing sysctl was created: %v", err)
	}
	if err := os.Remove(filepath.Join(root, sysctls[1].name)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, sysctls[1].name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := setSysctls(root); err == nil {
		t.Error("a sysctl that cannot be written was passed over")
	}
}

// Threat: the kernel prints what a process of a container held when it crashed, and the host reads the console.
func TestCrashesStayOffTheConsole(t *testing.T) {
	for _, name := range []string{"debug/exception-trace", "kernel/print-fatal-signals"} {
		if !slices.Contains(sysctls, sysctl{name, "0"}) {
			t.Errorf("%s is not switched off", name)
		}
	}
}

// The host reaches every file that the guest mounts with the wrong flags: what is not listed here as an exception
// carries nosuid and nodev, and the runtime's hybrid-cgroup refusal needs cgroup2 alone.
func TestMountPlan(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range append(pseudoMounts(), append(scratchMounts(), lateMounts()...)...) {
		if seen[m.target] {
			t.Errorf("%s is mounted twice", m.target)
		}
		seen[m.target] = true
		for parent := filepath.Dir(m.target); parent != "/"; parent = filepath.Dir(parent) {
			if m.target != ScratchDir && !seen[parent] && parent != "/sys/fs" && !seen["/sys"] {
				t.Errorf("%s is mounted before %s", m.target, parent)
			}
		}
		if m.flags&unix.MS_NODEV == 0 && m.fstype != "devtmpfs" && m.fstype != "devpts" {
			t.Errorf("%s allows device nodes", m.target)
		}
		if m.flags&unix.MS_NOSUID == 0 && m.target != ScratchDir {
			t.Errorf("%s allows set-uid files", m.target)
		}
		if strings.HasPrefix(m.fstype, "cgroup") && m.fstype != "cgroup2" {
			t.Errorf("%s: cgroup v1", m.target)
		}
	}
	for _, want := range []string{"/proc", "/sys", "/dev", "/run", "/sys/fs/cgroup", "/dev/pts", "/tmp"} {
		if !seen[want] {
			t.Errorf("%s is not mounted", want)
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), fs.FileMode(0o600)); err != nil {
		t.Fatal(err)
	}
}
