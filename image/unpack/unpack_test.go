// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// needRoot skips a test that changes owners and writes trusted attributes; where all tests are to run it must not.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_QEMU") == "1" {
		t.Fatal("layers are unpacked with the rights of root")
	}
	t.Skip("layers are unpacked with the rights of root")
}

// entry is a tar entry; the content of a regular file follows its header.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}, content}
}

func dir(name string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}

func link(kind byte, name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o777}, ""}
}

func tarball(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// arena is a folder for a layer, beside a folder that nothing may be written to.
func arena(t *testing.T) (layer, outside string) {
	t.Helper()
	top := t.TempDir()
	layer, outside = filepath.Join(top, "layer"), filepath.Join(top, "outside")
	for _, d := range []string{layer, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	return layer, outside
}

// untouched checks that the outside is as arena made it, and that top holds nothing else.
func untouched(t *testing.T, outside string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(outside, "secret"))
	if err != nil || string(data) != "secret" {
		t.Errorf("the file outside is %q, %v", data, err)
	}
	info, err := os.Stat(filepath.Join(outside, "secret"))
	if err != nil || info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Nlink != 1 {
		t.Errorf("the file outside is %v, %v", info, err)
	}
	for d, want := range map[string]int{outside: 1, filepath.Dir(outside): 2} {
		if entries, err := os.ReadDir(d); err != nil || len(entries) != want {
			t.Errorf("%s has %v, %v", d, entries, err)
		}
	}
}

func TestApply(t *testing.T) {
	needRoot(t)
	layer, outside := arena(t)
	when := time.Unix(1_000_000_000, 0)
	owned := file("etc/passwd", "root")
	owned.Uid, owned.Gid, owned.Mode, owned.ModTime = 12, 34, 0o4751, when
	owned.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "hello", "SCHILY.xattr.trusted.overlay.opaque": "y"}
	hard := owned
	hard.Typeflag, hard.Name, hard.Linkname, hard.Size, hard.content = tar.TypeLink, "hard", "etc/passwd", 0, ""
	etc := dir("etc/")
	etc.ModTime, etc.Mode = when, 0o1777
	stats, err := Apply(t.Context(), layer, bytes.NewReader(append(tarball(t,
		dir("./"), etc, owned, link(tar.TypeSymlink, "etc/link", "/absolute/target"), hard,
		entry{tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, ""}, file("deep/er/file", "x"),
	), make([]byte, 8192)...)), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if stats.Size != 5 || stats.Entries != 7 || stats.Devices != 0 {
		t.Errorf("stats %+v", stats)
	}
	info, err := os.Lstat(filepath.Join(layer, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Uid != 12 || st.Gid != 34 || info.Mode() != fs.ModeSetuid|0o751 || !info.ModTime().Equal(when) || st.Nlink != 2 {
		t.Errorf("etc/passwd: %v, owner %d:%d, %d links, time %v", info.Mode(), st.Uid, st.Gid, st.Nlink, info.ModTime())
	}
	if info, err := os.Lstat(filepath.Join(layer, "etc")); err != nil || info.Mode() != fs.ModeDir|fs.ModeSticky|0o777 || !info.ModTime().Equal(when) {
		t.Errorf("etc: %v, %v", info, err)
	}
	if target, err := os.Readlink(filepath.Join(layer, "etc/link")); err != nil || target != "/absolute/target" {
		t.Errorf("etc/link: %q, %v", target, err)
	}
	if info, err := os.Lstat(filepath.Join(layer, "fifo")); err != nil || info.Mode() != fs.ModeNamedPipe|0o600 {
		t.Errorf("fifo: %v, %v", info, err)
	}
	buf := make([]byte, 16)
	if _, err := unix.Lgetxattr(filepath.Join(layer, "etc/passwd"), "trusted.overlay.opaque", buf); !errors.Is(err, unix.ENODATA) {
		t.Errorf("an image has set a trusted attribute: %v", err)
	}
	if n, err := unix.Lgetxattr(filepath.Join(layer, "etc/passwd"), "user.note", buf); err == nil && string(buf[:n]) != "hello" {
		t.Errorf("user.note is %q", buf[:n])
	}
	untouched(t, outside)
}

func TestWhiteouts(t *testing.T) {
	needRoot(t)
	layer, outside := arena(t)
	_, err := Apply(t.Context(), layer, bytes.NewReader(tarball(t,
		dir("a/"), file("a/.wh.gone", ""), dir("b/"), file("b/.wh..wh..opq", ""), file("b/new", "new"),
	)), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(filepath.Join(layer, "a/gone"))
	if err != nil || info.Mode()&fs.ModeCharDevice == 0 || info.Sys().(*syscall.Stat_t).Rdev != 0 {
		t.Errorf("whiteout: %v, %v", info, err)
	}
	buf := make([]byte, 8)
	if n, err := unix.Lgetxattr(filepath.Join(layer, "b"), "trusted.overlay.opaque", buf); err != nil || string(buf[:n]) != "y" {
		t.Errorf("opaque folder: %q, %v", buf[:max(n, 0)], err)
	}
	for _, name := range []string{"a/.wh.gone", "b/.wh..wh..opq"} {
		if _, err := os.Lstat(filepath.Join(layer, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was written: %v", name, err)
		}
	}
	untouched(t, outside)
}

// A layer that somebody else made tries to write outside its folder. Whether it fails or is kept inside, nothing
// outside may change.
func TestAttacks(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name    string
		entries func(outside string) []entry
		want    string // "": contained without an error
	}{
		{"parent", func(string) []entry { return []entry{file("../outside/x", "x")} }, "outside its root"},
		{"deep parent", func(string) []entry { return []entry{file("a/../../outside/x", "x")} }, "outside its root"},
		{"the parent itself", func(string) []entry { return []entry{dir("..")} }, "outside its root"},
		{"absolute", func(o string) []entry { return []entry{file(o+"/x", "x")} }, ""},
		{"absolute with parents", func(string) []entry { return []entry{file("/../../../../x", "x")} }, ""},
		{"through a symlink", func(o string) []entry {
			return []entry{link(tar.TypeSymlink, "l", o), file("l/x", "x")}
		}, ""},
		{"through a relative symlink", func(string) []entry {
			return []entry{link(tar.TypeSymlink, "l", "../outside"), file("l/x", "x")}
		}, ""},
		{"through two symlinks", func(string) []entry {
			return []entry{dir("d"), link(tar.TypeSymlink, "d/up", ".."), link(tar.TypeSymlink, "l", "d/up/../../outside"), file("l/secret", "x")}
		}, ""},
		{"over a symlink", func(o string) []entry {
			return []entry{link(tar.TypeSymlink, "l", o+"/secret"), file("l", "overwritten")}
		}, ""},
		{"hard link outside", func(o string) []entry { return []entry{link(tar.TypeLink, "h", o+"/secret"), file("h", "x")} }, "no such file"},
		{"hard link to the parent", func(string) []entry { return []entry{link(tar.TypeLink, "h", "../outside/secret")} }, "no such file"},
		{"hard link through a symlink", func(o string) []entry {
			return []entry{link(tar.TypeSymlink, "l", o), link(tar.TypeLink, "h", "l/secret")}
		}, "no such file"},
		{"hard link to a symlink, then written", func(o string) []entry {
			return []entry{link(tar.TypeSymlink, "l", o+"/secret"), link(tar.TypeLink, "h", "l"), file("h", "x")}
		}, ""},
		{"folder's time through a symlink", func(o string) []entry {
			return []entry{dir("d"), link(tar.TypeSymlink, "d", o)}
		}, "no such file"},
		{"whiteout of the parent", func(string) []entry { return []entry{file(".wh...", "")} }, "whiteout"},
		{"whiteout of the folder", func(string) []entry { return []entry{dir("a"), file("a/.wh..", "")} }, "whiteout"},
		{"whiteout through a symlink", func(o string) []entry {
			return []entry{link(tar.TypeSymlink, "l", o), file("l/.wh.secret", "")}
		}, ""},
		{"opaque through a symlink", func(o string) []entry {
			return []entry{link(tar.TypeSymlink, "l", o), file("l/.wh..wh..opq", "")}
		}, ""},
		{"unknown kind", func(string) []entry { return []entry{{tar.Header{Name: "x", Typeflag: 'Z'}, ""}} }, "unhandled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			layer, outside := arena(t)
			_, err := Apply(t.Context(), layer, bytes.NewReader(tarball(t, tt.entries(outside)...)), Limits{})
			if tt.want == "" && err != nil {
				t.Errorf("Apply: %v", err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Apply: %v, want %q", err, tt.want)
			}
			untouched(t, outside)
		})
	}
}

func TestDevicesAreLeftOut(t *testing.T) {
	needRoot(t)
	layer, _ := arena(t)
	stats, err := Apply(t.Context(), layer, bytes.NewReader(tarball(t,
		entry{tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666}, ""},
		entry{tar.Header{Name: "mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1, Mode: 0o666}, ""},
		entry{tar.Header{Name: "forged-whiteout", Typeflag: tar.TypeChar, Mode: 0o666}, ""},
		file("kept", "x"),
	)), Limits{})
	if err != nil || stats.Devices != 3 {
		t.Errorf("Apply: %+v, %v", stats, err)
	}
	if entries, err := os.ReadDir(layer); err != nil || len(entries) != 1 || entries[0].Name() != "kept" {
		t.Errorf("the layer has %v, %v", entries, err)
	}
}

func TestLimits(t *testing.T) {
	needRoot(t)
	sparse, err := os.ReadFile("testdata/sparse.tar")
	if err != nil {
		t.Fatal(err)
	}
	many := make([]entry, 11)
	for i := range many {
		many[i] = file(strings.Repeat("n", i+1), "")
	}
	for _, tt := range []struct {
		name   string
		tar    []byte
		limits Limits
		want   string
	}{
		{"stream", append(tarball(t), make([]byte, 64<<10)...), Limits{Size: 32 << 10}, "bytes uncompressed"},
		{"endless padding", tarball(t, file("x", "x")), Limits{Size: 1024}, "bytes uncompressed"},
		{"file", tarball(t, file("x", strings.Repeat("x", 1000))), Limits{Size: 999}, "files of more than 999 bytes"},
		{"sparse file", sparse, Limits{Size: 1 << 20}, "files of more than 1048576 bytes"},
		{"files", tarball(t, many...), Limits{Files: 10}, "more than 10 files"},
		{"names", tarball(t, many...), Limits{Names: 20}, "names of more than 20 bytes"},
		{"one name", tarball(t, dir(strings.Repeat("d/", 2049))), Limits{}, "longer than 4095"},
		{"one link", tarball(t, link(tar.TypeSymlink, "l", strings.Repeat("d", 4096))), Limits{}, "longer than 4095"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			layer, _ := arena(t)
			_, err := Apply(t.Context(), layer, bytes.NewReader(tt.tar), tt.limits)
			if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Apply: %v, want %q", err, tt.want)
			}
		})
	}
}

func TestBrokenTar(t *testing.T) {
	needRoot(t)
	whole := tarball(t, file("a", "content of a"), file("b", "content of b"))
	broken := errors.New("broken")
	for name, r := range map[string]io.Reader{
		"cut in a header":            bytes.NewReader(whole[:1024+100]),
		"cut in a file":              bytes.NewReader(whole[:512+5]),
		"garbage":                    strings.NewReader(strings.Repeat("garbage ", 200)),
		"fails after the end marker": io.MultiReader(bytes.NewReader(whole), iotestErr{broken}),
	} {
		layer, _ := arena(t)
		if _, err := Apply(t.Context(), layer, r, Limits{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }
