// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs_test

import (
	"debug/elf"
	"os"
	"slices"
	"testing"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/testbed"
)

// TestRealKernels resolves the guest's modules in the kernels of the test bed.
func TestRealKernels(t *testing.T) {
	t.Parallel()
	for arch, machine := range map[string]elf.Machine{initramfs.ArchS390x: elf.EM_S390, initramfs.ArchAMD64: elf.EM_X86_64} {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			bed, err := testbed.Load(os.Getenv("CLOISTER_CACHE"), arch)
			if err != nil && os.Getenv("REQUIRE_QEMU") == "1" {
				t.Fatal(err)
			} else if err != nil {
				t.Skip(err)
			}
			want, err := initramfs.GuestModules(arch)
			if err != nil {
				t.Fatal(err)
			}
			c, err := initramfs.Resolve(bed.ModulesDir, want)
			if err != nil {
				t.Fatal(err)
			}
			release, m := c.Release()
			if release != bed.KernelVersion || m != machine {
				t.Errorf("modules of kernel %q for %v, want %q for %v", release, m, bed.KernelVersion, machine)
			}
			checkOrder(t, c, want)
		})
	}
}

// checkOrder makes sure that each module comes after what it depends on, and that all required ones are there.
func checkOrder(t *testing.T, c *initramfs.Closure, want []initramfs.Want) {
	t.Helper()
	var loaded []string
	for _, m := range c.Modules {
		for _, dep := range m.Info.Depends {
			if !slices.Contains(loaded, dep) {
				t.Errorf("%s is loaded before %s, which it depends on", m.Name, dep)
			}
		}
		loaded = append(loaded, m.Name)
	}
	for _, w := range want {
		name := initramfs.ModuleName(w.Name)
		if !w.Optional && !slices.Contains(loaded, name) && !slices.Contains(c.Builtin, name) {
			t.Errorf("%s is neither loaded nor built in", name)
		}
	}
}
