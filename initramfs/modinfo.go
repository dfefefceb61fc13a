// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"strings"
)

// maxModInfoSize bounds a module's .modinfo section, in bytes; real ones have a few KiB.
const maxModInfoSize = 1 << 20

// ModInfo is what a kernel module says about itself in its .modinfo section, see include/linux/module.h of the kernel.
// Names of modules have _ for -, as the kernel lists them.
type ModInfo struct {
	// Name is the module's own name; modules of old kernels have none.
	Name string
	// Depends are the modules whose symbols it uses; they must be loaded before.
	Depends []string
	// SoftPre and SoftPost are modules (or aliases) that it would like to have loaded before and after it.
	SoftPre, SoftPost []string
	// Vermagic is the kernel that the module was built for; its first word is the kernel's release.
	Vermagic string
	// Machine is the processor that the module was built for.
	Machine elf.Machine
}

// ParseModInfo reads the .modinfo section of an uncompressed 64-bit kernel module of either byte order.
func ParseModInfo(module []byte) (*ModInfo, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	if f.Type != elf.ET_REL || f.Class != elf.ELFCLASS64 {
		return nil, fmt.Errorf("read module: %v of %v is not a 64-bit kernel module", f.Type, f.Class)
	}
	sec := f.Section(".modinfo")
	if sec == nil {
		return nil, errors.New("read module: it has no .modinfo section")
	}
	if sec.Type != elf.SHT_PROGBITS || sec.Flags&elf.SHF_COMPRESSED != 0 || sec.FileSize > maxModInfoSize {
		return nil, fmt.Errorf("read module: .modinfo (%v, %v, %d bytes) is not a plain section of at most %d bytes",
			sec.Type, sec.Flags, sec.FileSize, maxModInfoSize)
	}
	data, err := sec.Data()
	if err != nil {
		return nil, fmt.Errorf("read module's .modinfo: %w", err)
	}
	info := &ModInfo{Machine: f.Machine}
	for field := range bytes.SplitSeq(data, []byte{0}) {
		key, value, ok := strings.Cut(string(field), "=")
		if ok {
			info.set(key, value)
		}
	}
	return info, nil
}

func (m *ModInfo) set(key, value string) {
	switch key {
	case "name":
		m.Name = ModuleName(value)
	case "vermagic":
		m.Vermagic = value
	case "depends":
		for dep := range strings.SplitSeq(value, ",") {
			if dep != "" {
				m.Depends = append(m.Depends, ModuleName(dep))
			}
		}
	case "softdep":
		m.setSoft(value)
	}
}

// setSoft parses "pre: a b post: c", see modprobe.d(5).
func (m *ModInfo) setSoft(value string) {
	var list *[]string
	for word := range strings.FieldsSeq(value) {
		switch {
		case word == "pre:":
			list = &m.SoftPre
		case word == "post:":
			list = &m.SoftPost
		case list != nil:
			*list = append(*list, ModuleName(word))
		}
	}
}

// ModuleName returns a module's name as the kernel lists it: with _ for -.
func ModuleName(s string) string { return strings.ReplaceAll(s, "-", "_") }
