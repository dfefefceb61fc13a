// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"debug/elf"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloister-cc/cloister/internal/elftest"
)

func TestParseModInfo(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		mod  elftest.File
		want ModInfo
	}{
		"big endian": {
			elftest.File{Machine: elf.EM_S390, ModInfo: []string{"name=dm_crypt", "depends=dm-mod,xts", "vermagic=6.12 SMP"}},
			ModInfo{Name: "dm_crypt", Depends: []string{"dm_mod", "xts"}, Vermagic: "6.12 SMP", Machine: elf.EM_S390},
		},
		"little endian": {
			elftest.File{Machine: elf.EM_X86_64, ModInfo: []string{"name=a", "depends=", "vermagic=6.1"}},
			ModInfo{Name: "a", Vermagic: "6.1", Machine: elf.EM_X86_64},
		},
		"soft dependencies": {
			elftest.File{ModInfo: []string{"softdep=pre: a-b c post: d", "softdep=post: e", "softdep=nonsense f"}},
			ModInfo{SoftPre: []string{"a_b", "c"}, SoftPost: []string{"d", "e"}, Machine: elf.EM_S390},
		},
		"no fields":           {elftest.File{ModInfo: []string{"x"}}, ModInfo{Machine: elf.EM_S390}},
		"field without value": {elftest.File{ModInfo: []string{"depends", "name=x=y", "=z"}}, ModInfo{Name: "x=y", Machine: elf.EM_S390}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseModInfo(tc.mod.Build(t))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, *got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseModInfoRefuses(t *testing.T) {
	t.Parallel()
	class32 := mod(t, "a")
	class32[elf.EI_CLASS] = byte(elf.ELFCLASS32)
	truncated := mod(t, "a")
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"empty":       {nil, "read module"},
		"text":        {[]byte("hello, this is not an ELF file at all, but long enough to look"), "bad magic"},
		"32 bit":      {class32, "read module"},
		"executable":  {elftest.File{ModInfo: []string{"x"}, Type: elf.ET_EXEC}.Build(t), "not a 64-bit kernel module"},
		"no modinfo":  {elftest.File{}.Build(t), "no .modinfo section"},
		"truncated":   {truncated[:100], "read module"},
		"huge fields": {elftest.File{ModInfo: []string{"x=" + strings.Repeat("y", maxModInfoSize)}}.Build(t), "not a plain section"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := ParseModInfo(tc.data); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func FuzzParseModInfo(f *testing.F) {
	f.Add(mod(f, "dm-crypt", "depends=dm-mod,xts", "softdep=pre: a post: b"))
	f.Add(elftest.File{Machine: elf.EM_X86_64, ModInfo: []string{"name=a"}}.Build(f))
	f.Add([]byte("\x7fELF\x02\x02\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := ParseModInfo(data)
		if err != nil {
			return
		}
		for _, dep := range info.Depends {
			if dep == "" || strings.ContainsAny(dep, "-,\x00") {
				t.Errorf("dependency %q", dep)
			}
		}
	})
}
