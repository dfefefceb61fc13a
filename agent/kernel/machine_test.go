// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// sysWith makes a sysfs of files and, where the content is empty, folders.
func sysWith(t *testing.T, files map[string]string) Machine {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if content == "" {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Machine{SysDir: dir}
}

func TestHugePages(t *testing.T) {
	m := sysWith(t, map[string]string{
		"kernel/mm/hugepages/hugepages-1048576kB": "", "kernel/mm/hugepages/hugepages-2048kB": "",
		"kernel/mm/hugepages/hugepages-64kB": "", "kernel/mm/hugepages/other": "",
	})
	got := m.HugePages()
	slices.Sort(got)
	if want := []string{"1GB", "2MB", "64KB"}; !slices.Equal(got, want) {
		t.Errorf("sizes %q, want %q", got, want)
	}
	if got := sysWith(t, nil).HugePages(); got == nil || len(got) != 0 { // nil would mean all
		t.Errorf("sizes %#v without huge pages", got)
	}
}

func TestMemory(t *testing.T) {
	m := sysWith(t, map[string]string{
		"devices/system/memory/block_size_bytes": "8000000\n", "devices/system/memory/probe": "x",
	})
	if size, probe := m.MemoryBlock(), m.MemoryProbe(); size != 128<<20 || !probe {
		t.Errorf("block of %d bytes, probe %t", size, probe)
	}
	m = sysWith(t, nil)
	if size, probe := m.MemoryBlock(), m.MemoryProbe(); size != 0 || probe {
		t.Errorf("without memory to plug in: block of %d bytes, probe %t", size, probe)
	}
	if size := sysWith(t, map[string]string{"devices/system/memory/block_size_bytes": "none"}).MemoryBlock(); size != 0 {
		t.Errorf("block of %d bytes", size)
	}
}

// A plain process leaves the clock of its machine alone.
func TestSetTimeOfForeignMachine(t *testing.T) {
	if err := (Machine{}).SetTime(1, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("set time: %v", err)
	}
}
