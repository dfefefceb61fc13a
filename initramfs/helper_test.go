// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// kmod describes a synthetic kernel module.
type kmod struct {
	machine elf.Machine
	order   binary.ByteOrder
	fields  []string // of .modinfo
	section string   // other name for .modinfo
	etype   elf.Type
}

// build returns a relocatable ELF file with a .modinfo section, followed by a signature as the kernel's build adds it.
func (k kmod) build(tb testing.TB) []byte {
	tb.Helper()
	if k.machine == elf.EM_NONE {
		k.machine, k.order = elf.EM_S390, binary.BigEndian
	}
	if k.etype == elf.ET_NONE {
		k.etype = elf.ET_REL
	}
	if k.section == "" {
		k.section = ".modinfo"
	}
	enc := elf.ELFDATA2LSB
	if k.order == binary.BigEndian {
		enc = elf.ELFDATA2MSB
	}
	names := "\x00" + k.section + "\x00.shstrtab\x00"
	info := strings.Join(k.fields, "\x00") + "\x00"
	const ehdr, shdr = 64, 64
	infoAt := uint64(ehdr)
	namesAt := infoAt + uint64(len(info))
	sectionsAt := (namesAt + uint64(len(names)) + 7) &^ 7
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(enc), byte(elf.EV_CURRENT)},
		Type:  uint16(k.etype), Machine: uint16(k.machine), Version: uint32(elf.EV_CURRENT),
		Shoff: sectionsAt, Ehsize: ehdr, Shentsize: shdr, Shnum: 3, Shstrndx: 2,
	}
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC), Off: infoAt, Size: uint64(len(info)), Addralign: 1},
		{Name: uint32(2 + len(k.section)), Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(len(names)), Addralign: 1},
	}
	var b bytes.Buffer
	must(tb, binary.Write(&b, k.order, h))
	b.WriteString(info + names)
	b.Write(make([]byte, sectionsAt-uint64(b.Len())))
	must(tb, binary.Write(&b, k.order, sections))
	b.WriteString("signature~Module signature appended~\n")
	return b.Bytes()
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// modulesDir makes a lib/modules/VERSION folder of files (name in the folder -> bytes) and built-in modules.
func modulesDir(tb testing.TB, files map[string][]byte, builtin ...string) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "6.12-test")
	must(tb, os.MkdirAll(filepath.Join(dir, "kernel"), 0o700))
	var order, built strings.Builder
	for name, data := range files {
		must(tb, os.WriteFile(filepath.Join(dir, "kernel", name), data, 0o600))
		base, _, _ := strings.Cut(name, ".ko")
		order.WriteString("kernel/" + base + ".ko\n")
	}
	for _, name := range builtin {
		built.WriteString("kernel/" + name + ".ko\n")
	}
	must(tb, os.WriteFile(filepath.Join(dir, "modules.order"), []byte(order.String()), 0o600))
	must(tb, os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(built.String()), 0o600))
	return dir
}

// mod returns a synthetic module of the default machine with the usual fields and others.
func mod(tb testing.TB, name string, fields ...string) []byte {
	tb.Helper()
	return kmod{fields: append([]string{"license=GPL", "vermagic=6.12-test SMP", "name=" + ModuleName(name)}, fields...)}.build(tb)
}
