// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package testbed

import (
	"debug/elf"
	"testing"
)

// checkStatic checks that a binary is of the architecture and needs neither an interpreter nor libraries.
func checkStatic(t *testing.T, path, arch string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if want := map[string]elf.Machine{ArchS390X: elf.EM_S390, ArchAMD64: elf.EM_X86_64}[arch]; f.Machine != want {
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
