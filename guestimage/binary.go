// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cloister-cc/cloister/initramfs"
)

// platform is what an architecture's binaries and kernels look like.
type platform struct {
	machine elf.Machine
	data    elf.Data
	console string
	release func(kernel []byte) (string, error)
}

func platformOf(arch string) platform {
	if arch == initramfs.ArchS390x {
		return platform{machine: elf.EM_S390, data: elf.ELFDATA2MSB, console: "ttysclp0", release: releaseS390x}
	}
	return platform{machine: elf.EM_X86_64, data: elf.ELFDATA2LSB, console: "ttyS0", release: releaseAMD64}
}

// CommandLine returns the kernel command line that a guest of the architecture is started with. init_on_free is what
// makes sure that no freed page keeps a secret. panic=-1 restarts, and so ends, a virtual machine whose agent died.
// lockdown closes every way from user space into the kernel's memory, and sig_enforce keeps out modules that the
// kernel's maker has not signed.
func CommandLine(arch string) string {
	const hardening = " panic=-1 init_on_free=1 lockdown=confidentiality module.sig_enforce=1"
	return "console=" + platformOf(arch).console + hardening
}

// readBinary reads a static ELF executable of the architecture.
func readBinary(input, file, arch string) ([]byte, error) {
	data, err := readInput(input, file, maxBinarySize)
	if err != nil {
		return nil, err
	}
	if err := checkStatic(data, platformOf(arch)); err != nil {
		return nil, badInput(input, "give a static executable for "+arch, "%s: %w", file, err)
	}
	return data, nil
}

func checkStatic(data []byte, p platform) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("not an ELF executable: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != p.machine || f.Data != p.data {
		return fmt.Errorf("the executable is for another machine (%v, %v, %v)", f.Machine, f.Class, f.Data)
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return fmt.Errorf("not an executable, but %v", f.Type)
	}
	loads := false
	for _, prog := range f.Progs {
		if prog.Type == elf.PT_INTERP {
			return errors.New("the executable is dynamically linked (it names an interpreter)")
		}
		loads = loads || prog.Type == elf.PT_LOAD
	}
	if !loads {
		return errors.New("the executable has nothing to load")
	}
	libs, err := f.ImportedLibraries()
	if err == nil && len(libs) > 0 {
		return fmt.Errorf("the executable is dynamically linked (it needs %s)", libs[0])
	}
	return nil
}

// Where s390x kernel images say what they are: the magic behind the first branch, and the address of the version in the
// parameter area (arch/s390/include/asm/setup.h).
const (
	s390MagicAt   = 0x10008
	s390VersionAt = 0x10428
)

var s390Magic = [6]byte{'S', '3', '9', '0', 'E', 'P'}

func releaseS390x(kernel []byte) (string, error) {
	if len(kernel) < s390VersionAt+8 || !bytes.Equal(kernel[s390MagicAt:][:len(s390Magic)], s390Magic[:]) {
		return "", errors.New("not a bootable s390x kernel image")
	}
	return releaseAt(kernel, binary.BigEndian.Uint64(kernel[s390VersionAt:]))
}

// Where x86 kernel images say what they are (Documentation/arch/x86/boot.rst): boot sector's and setup header's magic,
// and the version's place, counted from the end of the boot sector.
const (
	x86BootFlagAt  = 0x1fe
	x86BootFlag    = 0xaa55
	x86MagicAt     = 0x202
	x86VersionAt   = 0x20e
	x86SectorSize  = 0x200
	x86MinimumSize = 0x268
)

var x86Magic = [4]byte{'H', 'd', 'r', 'S'}

func releaseAMD64(kernel []byte) (string, error) {
	if len(kernel) < x86MinimumSize || binary.LittleEndian.Uint16(kernel[x86BootFlagAt:]) != x86BootFlag ||
		!bytes.Equal(kernel[x86MagicAt:][:len(x86Magic)], x86Magic[:]) {
		return "", errors.New("not a bootable x86 kernel image (bzImage)")
	}
	at := uint64(binary.LittleEndian.Uint16(kernel[x86VersionAt:]))
	if at == 0 {
		return "", nil
	}
	return releaseAt(kernel, at+x86SectorSize)
}

// releaseAt returns the first word of the NUL-terminated version at an offset, "" where the image names none.
func releaseAt(kernel []byte, at uint64) (string, error) {
	if at == 0 {
		return "", nil
	}
	if at >= uint64(len(kernel)) {
		return "", fmt.Errorf("the kernel image ends before its version at %#x", at)
	}
	version, _, ok := bytes.Cut(kernel[at:min(at+256, uint64(len(kernel)))], []byte{0})
	if !ok {
		return "", errors.New("the kernel image's version does not end")
	}
	release, _, _ := strings.Cut(string(version), " ")
	return release, nil
}

// readKernel reads a kernel image and returns it with its release ("" where it does not say).
func readKernel(file, arch string) ([]byte, string, error) {
	data, err := readInput("kernel", file, maxBinarySize)
	if err != nil {
		return nil, "", err
	}
	release, err := platformOf(arch).release(data)
	if err != nil {
		return nil, "", badInput("kernel", "give the vmlinuz of a kernel for "+arch, "%s: %w", file, err)
	}
	return data, release, nil
}

// resolveModules finds the guest's kernel modules and checks that they belong to the kernel.
func resolveModules(o *Options, release string) (*initramfs.Closure, error) {
	want, err := initramfs.GuestModules(o.Arch)
	if err != nil {
		return nil, &InputError{Input: "arch", Err: err}
	}
	for _, name := range o.ExtraModules {
		want = append(want, initramfs.Want{Name: name})
	}
	c, err := initramfs.Resolve(o.ModulesDir, want)
	if err != nil {
		hint := "give the lib/modules/VERSION folder that was packaged with the kernel"
		return nil, &InputError{Input: "modules", Err: err, What: hint}
	}
	built, machine := c.Release()
	if machine != elf.EM_NONE && machine != platformOf(o.Arch).machine {
		return nil, badInput("modules", "", "%s holds modules for another machine (%v)", o.ModulesDir, machine)
	}
	if built != "" && release != "" && built != release {
		return nil, badInput("modules", "give the modules of the same kernel", "%s is of kernel %s, but %s is kernel %s",
			o.ModulesDir, built, o.Kernel, release)
	}
	return c, nil
}
