// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/internal/testns"
)

// mounted returns the line of /proc/self/mountinfo for a mount point, "" if there is none.
func mounted(t *testing.T, target string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[4] == target {
			return line
		}
	}
	return ""
}

func TestKernel(t *testing.T) {
	if !testns.Inside(t) {
		return
	}
	dir := filepath.Join(t.TempDir(), "run")
	m, err := New(Config{RunDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	ctx, group := t.Context(), uint32(os.Getgid())
	s := shm(dir)
	s.Options = []string{"noexec", "nosuid", "nodev", "mode=1777", "size=1048576", fmt.Sprintf("fsgid=%d", group)}
	s.Transient = true
	if err := m.Add(ctx, "a", s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nosuid", "nodev", "noexec", "size=1024k"} {
		if line := mounted(t, s.MountPoint); !strings.Contains(line, want) {
			t.Errorf("no %s: %s", want, line)
		}
	}
	if mode, g := modeOf(t, s.MountPoint); mode != 0o3777 || g != group {
		t.Errorf("mode %o, group %d", mode, g)
	}
	if err := os.WriteFile(s.MountPoint+"/file", []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	update := s
	update.Options = []string{"remount", "size=2M", "fsgid=7"}
	if err := m.Update(ctx, update); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"nosuid", "nodev", "noexec", "size=2048k"} {
		if line := mounted(t, s.MountPoint); !strings.Contains(line, want) {
			t.Errorf("no %s after the update: %s", want, line)
		}
	}
	update.Options = []string{"size=1k"} // less than is used
	file, err := os.OpenFile(s.MountPoint+"/big", os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(make([]byte, 1<<20)); err != nil {
		t.Error(err)
	}
	if err := m.Update(ctx, update); err == nil {
		t.Error("a tmpfs shrank below what it holds")
	}
	if err := m.Add(ctx, "b", s); err != nil {
		t.Fatal(err)
	}
	if err := m.Release(ctx, "a"); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(s.MountPoint + "/file"); err != nil || string(data) != "kept" {
		t.Errorf("%q, %v", data, err)
	}
	if err := m.Release(ctx, "b"); err != nil { // the open file does not hinder
		t.Error(err)
	}
	file.Close()
	if line := mounted(t, s.MountPoint); line != "" {
		t.Errorf("mounted still: %s", line)
	}
	exists(t, s.MountPoint, false)
	bad := s
	bad.Options = []string{"uid=5,size=0%,nr_inodes=999999999999999999"} // passes our checks and not the kernel's
	if err := m.Add(ctx, "a", bad); err == nil || mounted(t, s.MountPoint) != "" {
		t.Errorf("kernel took %q: %v", bad.Options, err)
	}
	exists(t, s.MountPoint, false)
}

// TestKernelHugePages needs a kernel with huge pages and memory for one more of them.
func TestKernelHugePages(t *testing.T) {
	const sysDir = "/sys/kernel/mm/hugepages"
	entries, err := os.ReadDir(sysDir)
	if err != nil || len(entries) == 0 {
		t.Skipf("the kernel has no huge pages: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("setting the number of huge pages needs root")
	}
	if !testns.Inside(t) {
		return
	}
	var kilobytes []uint64
	for _, e := range entries {
		var n uint64
		if _, err := fmt.Sscanf(e.Name(), "hugepages-%dkB", &n); err != nil {
			t.Fatal(err)
		}
		kilobytes = append(kilobytes, n)
	}
	size := slices.Min(kilobytes) * 1024
	dir := filepath.Join(t.TempDir(), "run")
	m, err := New(Config{RunDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	before, err := m.pools.read(size)
	if err != nil {
		t.Fatal(err)
	}
	s := Storage{Driver: DriverEphemeral, FSType: fsHuge, MountPoint: dir + "/sandbox/ephemeral/huge", Options: []string{fmt.Sprintf("pagesize=%d,size=%d", size, size)}}
	if err := m.Add(t.Context(), "a", s); err != nil {
		t.Fatal(err)
	}
	if line := mounted(t, s.MountPoint); !strings.Contains(line, "hugetlbfs") {
		t.Errorf("mounted: %q", line)
	}
	if now, err := m.pools.read(size); err != nil || now < max(before, 1) {
		t.Errorf("%d huge pages, %v", now, err)
	}
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if now, err := m.pools.read(size); err != nil || now != before {
		t.Errorf("%d huge pages afterwards (%v), %d before", now, err, before)
	}
}
