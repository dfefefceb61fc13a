// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/cloister-cc/cloister/internal/elftest"
)

func names(modules []Module) []string {
	var out []string
	for _, m := range modules {
		out = append(out, m.Name)
	}
	return out
}

func optional(modules []Module) []string {
	var out []string
	for _, m := range modules {
		if m.Optional {
			out = append(out, m.Name)
		}
	}
	return out
}

func TestResolve(t *testing.T) {
	t.Parallel()
	dir := modulesDir(t, map[string][]byte{
		"dm-mod.ko":       mod(t, "dm-mod"),
		"dm-bufio.ko":     mod(t, "dm-bufio", "depends=dm-mod"),
		"dm-verity.ko":    mod(t, "dm-verity", "depends=dm-bufio,reed_solomon,dm-mod,builtin-lib"),
		"reed_solomon.ko": mod(t, "reed_solomon", "softdep=post: dm-verity"), // back to what needs it
		"xts.ko":          mod(t, "xts", "softdep=pre: ecb soft post: after"),
		"ecb.ko":          mod(t, "ecb"),
		"after.ko":        mod(t, "after", "depends=xts"),
		"broken.ko":       mod(t, "broken", "depends=gone"),
		"user.ko":         mod(t, "user", "depends=broken"),
	}, "builtin-lib", "virtio_pci")
	for name, tc := range map[string]struct {
		want     []Want
		modules  []string
		optional []string
		builtin  []string
		missing  []string
		soft     []string
	}{
		"nothing": {},
		"dependencies first": {
			want:    []Want{{Name: "dm_verity"}},
			modules: []string{"dm_mod", "dm_bufio", "reed_solomon", "dm_verity"},
		},
		"each once, in the order of the wants": {
			want:    []Want{{Name: "dm-mod"}, {Name: "ecb"}, {Name: "dm-bufio"}, {Name: "dm-mod"}},
			modules: []string{"dm_mod", "ecb", "dm_bufio"},
		},
		"soft dependencies are optional": {
			want:     []Want{{Name: "xts"}},
			modules:  []string{"ecb", "xts", "after"},
			optional: []string{"ecb", "after"},
			soft:     []string{"soft"},
		},
		"built in": {
			want:    []Want{{Name: "virtio-pci"}, {Name: "dm-mod"}},
			modules: []string{"dm_mod"},
			builtin: []string{"virtio_pci"},
		},
		"optional ones that are missing": {
			want:    []Want{{Name: "gone", Optional: true}, {Name: "user", Optional: true}, {Name: "dm-mod"}},
			modules: []string{"dm_mod"},
			missing: []string{"gone", "user"},
		},
		"required later": {
			want:    []Want{{Name: "dm-bufio", Optional: true}, {Name: "dm-bufio"}},
			modules: []string{"dm_mod", "dm_bufio"},
		},
		"shared with an optional one": {
			want:     []Want{{Name: "dm-bufio", Optional: true}, {Name: "dm-mod"}},
			modules:  []string{"dm_mod", "dm_bufio"},
			optional: []string{"dm_bufio"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := Resolve(dir, tc.want)
			if err != nil {
				t.Fatal(err)
			}
			for _, diff := range []string{
				cmp.Diff(tc.modules, names(c.Modules)), cmp.Diff(tc.optional, optional(c.Modules)),
				cmp.Diff(tc.builtin, c.Builtin), cmp.Diff(tc.missing, c.Missing), cmp.Diff(tc.soft, c.MissingSoft),
			} {
				if diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	t.Parallel()
	other := elftest.File{
		Machine: elf.EM_X86_64,
		ModInfo: []string{"name=other", "vermagic=6.12-test SMP"},
	}.Build(t)
	dir := modulesDir(t, map[string][]byte{
		"a.ko":        mod(t, "a", "depends=b"),
		"b.ko":        mod(t, "b", "depends=c"),
		"c.ko":        mod(t, "c", "depends=a"),
		"self.ko":     mod(t, "self", "depends=self"),
		"s1.ko":       mod(t, "s1", "softdep=pre: s2"),
		"s2.ko":       mod(t, "s2", "depends=s1"),
		"user.ko":     mod(t, "user", "depends=broken"),
		"broken.ko":   mod(t, "broken", "depends=gone"),
		"fine.ko":     mod(t, "fine"),
		"old.ko":      elftest.File{ModInfo: []string{"name=old", "vermagic=6.11 SMP"}}.Build(t),
		"other.ko":    other,
		"liar.ko":     mod(t, "fine"),
		"text.ko":     []byte("no module"),
		"bad.ko.xz":   []byte("no xz"),
		"bad2.ko.zst": []byte("no zstd"),
	})
	for name, tc := range map[string]struct {
		want []Want
		err  string
	}{
		"missing":            {[]Want{{Name: "no-such"}}, "kernel module no_such is not in " + dir},
		"missing dependency": {[]Want{{Name: "user"}}, "kernel module gone, which broken depends on, is not in " + dir},
		"cycle":              {[]Want{{Name: "a"}}, "cycle of module dependencies: a -> b -> c -> a"},
		"cycle, optional":    {[]Want{{Name: "a", Optional: true}}, "cycle"},
		"cycle of one":       {[]Want{{Name: "self"}}, "self -> self"},
		"soft cycle":         {[]Want{{Name: "s1"}}, "s1 -> s2 -> s1"},
		"two kernels":        {[]Want{{Name: "fine"}, {Name: "old"}}, "different kernels"},
		"two machines":       {[]Want{{Name: "fine"}, {Name: "other"}}, "different kernels"},
		"wrong name":         {[]Want{{Name: "liar"}}, `says that its name is "fine"`},
		"not a module":       {[]Want{{Name: "text"}}, "text.ko: read module"},
		"bad xz":             {[]Want{{Name: "bad"}}, "bad.ko.xz: decompress"},
		"bad zstd":           {[]Want{{Name: "bad2"}}, "bad2.ko.zst: decompress"},
		"two parameters":     {[]Want{{Name: "fine", Params: "a=1"}, {Name: "fine", Params: "a=2"}}, `parameters "a=1" and "a=2"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := Resolve(dir, tc.want)
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("closure %v, error %v; want an error with %q", c, err, tc.err)
			}
		})
	}
}

func TestResolveRefusesFolders(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		order, builtin string
		err            string
	}{
		"empty folder":            {"", "", "modules.order"},
		"no builtin":              {"kernel/a.ko\n", "", "modules.builtin"},
		"leaves":                  {"../a.ko\n", "kernel/b.ko\n", "is not the path of a module"},
		"absolute":                {"/a.ko\n", "kernel/b.ko\n", "is not the path of a module"},
		"not modules":             {"kernel/readme.txt\n", "kernel/b.ko\n", "is not the path of a module"},
		"lists what is not there": {"kernel/a.ko\n", "kernel/b.ko\n", "there is no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, text := range map[string]string{"modules.order": tc.order, "modules.builtin": tc.builtin} {
				if text != "" {
					must(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
				}
			}
			_, err := Resolve(dir, []Want{{Name: "a"}})
			if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), "modules") {
				t.Errorf("error %v, want one with %q", err, tc.err)
			}
		})
	}
	if _, err := Resolve(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want ErrNotExist", err)
	}
}

// TestResolveStaysInFolder: a folder of modules that somebody else has packed must not make the build read, and put
// into the initramfs, any other file of the build host.
func TestResolveStaysInFolder(t *testing.T) {
	t.Parallel()
	dir := modulesDir(t, map[string][]byte{"a.ko": mod(t, "a")})
	outside := filepath.Join(t.TempDir(), "a.ko")
	must(t, os.WriteFile(outside, mod(t, "a"), 0o600))
	must(t, os.Remove(filepath.Join(dir, "kernel/a.ko")))
	must(t, os.Symlink(outside, filepath.Join(dir, "kernel/a.ko")))
	if _, err := Resolve(dir, []Want{{Name: "a"}}); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("error %v, want one that the path escapes", err)
	}
}

func TestModuleCompression(t *testing.T) {
	t.Parallel()
	plain := mod(t, "a")
	var x bytes.Buffer
	xw, err := xz.NewWriter(&x)
	must(t, err)
	_, err = xw.Write(plain)
	must(t, err)
	must(t, xw.Close())
	zw, err := zstd.NewWriter(nil)
	must(t, err)
	for suffix, data := range map[string][]byte{"": plain, ".xz": x.Bytes(), ".zst": zw.EncodeAll(plain, nil)} {
		t.Run("ko"+suffix, func(t *testing.T) {
			t.Parallel()
			dir := modulesDir(t, map[string][]byte{"a.ko" + suffix: data})
			c, err := Resolve(dir, []Want{{Name: "a"}})
			if err != nil {
				t.Fatal(err)
			}
			m := c.Modules
			if len(m) != 1 || m[0].File != "a.ko" || !bytes.Equal(m[0].Data, plain) {
				t.Errorf("got %v", names(m))
			}
			if !bytes.HasSuffix(m[0].Data, []byte("~Module signature appended~\n")) {
				t.Error("the signature is gone")
			}
		})
	}
}

func TestGuestModulesRefuses(t *testing.T) {
	t.Parallel()
	if _, err := GuestModules("riscv64"); err == nil {
		t.Error("no error")
	}
}
