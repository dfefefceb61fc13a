// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package testbed

import (
	"debug/elf"
	"testing"

	"github.com/cloister-cc/cloister/initramfs"
)

// checkStatic checks that a binary is of the architecture and needs neither an interpreter nor libraries.
func checkStatic(t *testing.T, path, arch string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if want := map[string]elf.Machine{initramfs.ArchS390x: elf.EM_S390, initramfs.ArchAMD64: elf.EM_X86_64}[arch]; f.Machine != want {
		t.Errorf("%s is for %v, want %v", path, f.Machine, want)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s needs an interpreter", path)
		}
	}
	if libs, err := f.ImportedLibraries(); err == nil && len(libs) > 0 {
		t.Errorf("%s needs %q", path, libs)
	}
}
