// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package elftest makes small 64-bit ELF files for tests: kernel modules and executables of either byte order. They
// have headers that tools believe, and no code.
package elftest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"
)

// File describes an ELF file. The zero value is a relocatable s390x file without a .modinfo section.
type File struct {
	// Machine is the processor; its byte order is little endian for x86-64 and big endian for all else.
	Machine elf.Machine
	// Type of the file; the zero value means ET_REL.
	Type elf.Type
	// ModInfo are the fields of the .modinfo section, which is left out if there are none.
	ModInfo []string
	// Interpreter, if not empty, is named by a program header, as in a dynamically linked executable.
	Interpreter string
	// Needed, if not empty, is a shared library that the .dynamic section names.
	Needed string
	// NoLoad leaves out the program header that says what to load.
	NoLoad bool
	// Appended follows the file, as the signature of a module does.
	Appended string
}

// Module returns a kernel module for s390x with the given name and further .modinfo fields, and a signature.
func Module(tb testing.TB, name string, fields ...string) []byte {
	tb.Helper()
	return File{
		ModInfo:  append([]string{"license=GPL", "vermagic=6.12-test SMP", "name=" + strings.ReplaceAll(name, "-", "_")}, fields...),
		Appended: "signature~Module signature appended~\n",
	}.Build(tb)
}

// Executable returns a static executable for a machine.
func Executable(tb testing.TB, machine elf.Machine) []byte {
	tb.Helper()
	return File{Machine: machine, Type: elf.ET_EXEC}.Build(tb)
}

// Sizes of the headers of a 64-bit ELF file, in bytes.
const (
	fileHeaderSize    = 64
	programHeaderSize = 56
	sectionHeaderSize = 64
)

// layout is an ELF file in the making: contents start at a fixed offset behind the program headers.
type layout struct {
	order    binary.ByteOrder
	start    uint64
	body     bytes.Buffer
	names    bytes.Buffer // .shstrtab, which also serves as .dynstr
	progs    []elf.Prog64
	sections []elf.Section64
}

func (l *layout) put(data []byte) (offset uint64) {
	l.body.Write(make([]byte, -l.body.Len()&7))
	offset = l.start + uint64(l.body.Len())
	l.body.Write(data)
	return offset
}

func (l *layout) name(s string) uint32 {
	at := uint32(l.names.Len())
	l.names.WriteString(s + "\x00")
	return at
}

// Build returns the file's bytes.
func (f File) Build(tb testing.TB) []byte {
	tb.Helper()
	if f.Machine == elf.EM_NONE {
		f.Machine = elf.EM_S390
	}
	if f.Type == elf.ET_NONE {
		f.Type = elf.ET_REL
	}
	const maxProgs = 2
	l := &layout{order: binary.BigEndian, start: fileHeaderSize + maxProgs*programHeaderSize, sections: make([]elf.Section64, 1)}
	encoding := elf.ELFDATA2MSB
	if f.Machine == elf.EM_X86_64 {
		l.order, encoding = binary.LittleEndian, elf.ELFDATA2LSB
	}
	l.name("")
	f.contents(tb, l)
	namesAt := len(l.sections)
	table := l.name(".shstrtab")
	at := l.put(l.names.Bytes())
	l.sections = append(l.sections, elf.Section64{
		Name: table, Type: uint32(elf.SHT_STRTAB), Off: at, Size: uint64(l.names.Len()), Addralign: 1,
	})
	var sections bytes.Buffer
	write(tb, &sections, l.order, l.sections)
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(encoding), byte(elf.EV_CURRENT)},
		Type:  uint16(f.Type), Machine: uint16(f.Machine), Version: uint32(elf.EV_CURRENT),
		Phoff: fileHeaderSize, Phentsize: programHeaderSize, Phnum: uint16(len(l.progs)),
		Shoff: l.put(sections.Bytes()), Shentsize: sectionHeaderSize, Shnum: uint16(len(l.sections)),
		Shstrndx: uint16(namesAt), Ehsize: fileHeaderSize,
	}
	var out bytes.Buffer
	write(tb, &out, l.order, h)
	write(tb, &out, l.order, l.progs)
	out.Write(make([]byte, int(l.start)-out.Len()))
	out.Write(l.body.Bytes())
	out.WriteString(f.Appended)
	return out.Bytes()
}

// contents adds the sections and program headers that the file asks for.
func (f File) contents(tb testing.TB, l *layout) {
	tb.Helper()
	if len(f.ModInfo) > 0 {
		data := strings.Join(f.ModInfo, "\x00") + "\x00"
		l.sections = append(l.sections, elf.Section64{
			Name: l.name(".modinfo"), Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC),
			Off: l.put([]byte(data)), Size: uint64(len(data)), Addralign: 1,
		})
	}
	if f.Type == elf.ET_REL {
		return
	}
	if !f.NoLoad {
		l.progs = append(l.progs, elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Align: 4096})
	}
	if f.Interpreter != "" {
		data := f.Interpreter + "\x00"
		l.progs = append(l.progs, elf.Prog64{
			Type: uint32(elf.PT_INTERP), Flags: uint32(elf.PF_R), Off: l.put([]byte(data)),
			Filesz: uint64(len(data)), Memsz: uint64(len(data)), Align: 1,
		})
	}
	if f.Needed != "" {
		var dyn bytes.Buffer
		write(tb, &dyn, l.order, []elf.Dyn64{{Tag: int64(elf.DT_NEEDED), Val: uint64(l.name(f.Needed))}, {}})
		l.sections = append(l.sections, elf.Section64{
			Name: l.name(".dynamic"), Type: uint32(elf.SHT_DYNAMIC), Off: l.put(dyn.Bytes()), Size: uint64(dyn.Len()),
			Link: uint32(len(l.sections) + 1), Entsize: 16, Addralign: 8,
		})
	}
}

func write(tb testing.TB, b *bytes.Buffer, order binary.ByteOrder, v any) {
	tb.Helper()
	if err := binary.Write(b, order, v); err != nil {
		tb.Fatal(err)
	}
}
