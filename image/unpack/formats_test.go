// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// apply unpacks entries into a folder of its own.
func apply(t *testing.T, entries ...entry) (layer string) {
	t.Helper()
	layer, outside := arena(t)
	if _, err := Apply(t.Context(), layer, bytes.NewReader(tarball(t, entries...)), Limits{}); err != nil {
		t.Fatal(err)
	}
	untouched(t, outside)
	return layer
}

// The root of a layer cannot be marked for overlayfs, so that is told, however the root is named.
func TestOpaqueRoot(t *testing.T) {
	needRoot(t)
	for name, row := range map[string]struct {
		entries []entry
		want    bool
	}{
		"plain":        {[]entry{file(".wh..wh..opq", ""), file("x", "x")}, true},
		"at the end":   {[]entry{file("x", "x"), file("./.wh..wh..opq", "")}, true},
		"absolute":     {[]entry{file("/.wh..wh..opq", "")}, true},
		"by a link":    {[]entry{link(tar.TypeSymlink, "l", "/"), file("l/.wh..wh..opq", "")}, true},
		"a folder":     {[]entry{dir("d"), file("d/.wh..wh..opq", "")}, false},
		"another name": {[]entry{file(".wh..wh..opqx", ""), file("d/.wh.x", "")}, false},
	} {
		layer, _ := arena(t)
		stats, err := Apply(t.Context(), layer, bytes.NewReader(tarball(t, row.entries...)), Limits{})
		if err != nil || stats.Opaque != row.want {
			t.Errorf("%s: opaque %t, %v; want %t", name, stats.Opaque, err, row.want)
		}
	}
}

// describe writes a layer down: one line for each file, with what it is.
func describe(t *testing.T, layer string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(layer, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == layer {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		name, what := strings.TrimPrefix(path, layer+"/"), ""
		switch {
		case info.IsDir():
			what = "folder"
			buf := make([]byte, 8)
			if n, err := unix.Lgetxattr(path, "trusted.overlay.opaque", buf); err == nil && string(buf[:n]) == "y" {
				what = "opaque folder"
			}
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what = fmt.Sprintf("file %q", data)
		case info.Mode()&fs.ModeCharDevice != 0 && info.Sys().(*syscall.Stat_t).Rdev == 0:
			what = "whiteout"
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what = "link to " + target
		default:
			what = info.Mode().String()
		}
		lines = append(lines, name+": "+what)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// Tars of layers say the same thing in many ways, and some say it twice.
func TestShapes(t *testing.T) {
	needRoot(t)
	old := file("f", "old")
	cont := file("f", "contiguous")
	cont.Typeflag = tar.TypeCont
	global := entry{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x"}}, ""}
	for name, tt := range map[string]struct {
		entries []entry
		want    []string
	}{
		"empty":                        {nil, nil},
		"a file twice":                 {[]entry{old, file("f", "new")}, []string{`f: file "new"`}},
		"a file by three names":        {[]entry{file("./f", "1"), file("/f", "2"), file("d/../f", "3")}, []string{`f: file "3"`}},
		"a folder becomes a file":      {[]entry{dir("d"), file("d/x", ""), file("d", "now a file")}, []string{`d: file "now a file"`}},
		"a file becomes a folder":      {[]entry{file("d", ""), dir("d"), file("d/x", "x")}, []string{"d: folder", `d/x: file "x"`}},
		"a link becomes a folder":      {[]entry{link(tar.TypeSymlink, "d", "e"), dir("d"), file("d/x", "x")}, []string{"d: folder", `d/x: file "x"`}},
		"a file becomes a link":        {[]entry{old, link(tar.TypeSymlink, "f", "../../etc/shadow")}, []string{"f: link to ../../etc/shadow"}},
		"a folder twice":               {[]entry{dir("d"), file("d/x", "x"), dir("d")}, []string{"d: folder", `d/x: file "x"`}},
		"no folders":                   {[]entry{file("a/b/c", "x")}, []string{"a: folder", "a/b: folder", `a/b/c: file "x"`}},
		"the root only":                {[]entry{dir("./"), dir("/"), dir(".")}, nil},
		"through a link inside":        {[]entry{dir("real"), link(tar.TypeSymlink, "l", "real"), file("l/x", "x")}, []string{"l: link to real", "real: folder", `real/x: file "x"`}},
		"a hard link to itself later":  {[]entry{old, link(tar.TypeLink, "h", "f"), file("f", "new")}, []string{`f: file "new"`, `h: file "old"`}},
		"a hard link by /":             {[]entry{old, link(tar.TypeLink, "h", "/f")}, []string{`f: file "old"`, `h: file "old"`}},
		"contiguous":                   {[]entry{cont}, []string{`f: file "contiguous"`}},
		"global header":                {[]entry{global, old}, []string{`f: file "old"`}},
		"long name":                    {[]entry{file(strings.Repeat("n", 200), "x")}, []string{strings.Repeat("n", 200) + `: file "x"`}},
		"whiteout":                     {[]entry{file("d/.wh.f", "")}, []string{"d: folder", "d/f: whiteout"}},
		"whiteout, then the file":      {[]entry{file(".wh.f", ""), old}, []string{`f: file "old"`}},
		"the file, then its whiteout":  {[]entry{old, file(".wh.f", "")}, []string{`f: file "old"`}},
		"whiteout twice":               {[]entry{file(".wh.f", ""), file(".wh.f", "")}, []string{"f: whiteout"}},
		"whiteout, then a folder":      {[]entry{file(".wh.d", ""), dir("d"), file("d/x", "x")}, []string{"d: opaque folder", `d/x: file "x"`}},
		"a folder, then its whiteout":  {[]entry{dir("d"), file("d/x", "x"), file(".wh.d", "")}, []string{"d: opaque folder", `d/x: file "x"`}},
		"a link, then its whiteout":    {[]entry{link(tar.TypeSymlink, "l", "/"), file(".wh.l", "")}, []string{"l: link to /"}},
		"opaque":                       {[]entry{dir("d"), file("d/.wh..wh..opq", ""), file("d/x", "x")}, []string{"d: opaque folder", `d/x: file "x"`}},
		"opaque at the end":            {[]entry{dir("d"), file("d/x", "x"), file("d/.wh..wh..opq", "")}, []string{"d: opaque folder", `d/x: file "x"`}},
		"opaque without its folder":    {[]entry{file("d/.wh..wh..opq", "")}, []string{"d: opaque folder"}},
		"opaque, then the folder":      {[]entry{file("d/.wh..wh..opq", ""), dir("d")}, []string{"d: opaque folder"}},
		"what aufs left":               {[]entry{file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), old}, []string{`f: file "old"`}},
		"a file below a hidden folder": {[]entry{file(".wh.d", ""), dir("d/"), dir("d/e"), file("d/e/x", "x")}, []string{"d: opaque folder", "d/e: folder", `d/e/x: file "x"`}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := describe(t, apply(t, tt.entries...)); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Capabilities, setuid bits and owners are rights: none may be lost, and none may appear.
func TestRights(t *testing.T) {
	needRoot(t)
	// VFS_CAP_REVISION_2 with the effective bit, cap_net_bind_service; see the kernel's uapi/linux/capability.h.
	caps := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	ping := file("bin/ping", "ping")
	ping.Mode, ping.Uid, ping.Gid, ping.Uname, ping.Gname = 0o755, 1000, 1000, "root", "root" // names mean nothing here
	ping.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": caps, "SCHILY.xattr.user.long": strings.Repeat("v", 200)}
	bare := link(tar.TypeLink, "bin/ping6", "bin/ping")
	bare.Mode, bare.Uid, bare.Gid = 0o755, 1000, 1000
	chain := link(tar.TypeLink, "bin/ping7", "/bin/ping6")
	chain.Mode, chain.Uid, chain.Gid = 0o755, 1000, 1000
	su := file("bin/su", "su")
	su.Mode = 0o6755
	sulink := link(tar.TypeLink, "bin/su2", "bin/su")
	sulink.Mode = 0o6755
	layer := apply(t, ping, bare, chain, su, sulink, file("bin/plain", "x"), file("again", "x"), func() entry { e := ping; e.Name = "again"; return e }(), file("again", "x"))
	attr := func(name, key string) string {
		buf := make([]byte, 256)
		n, err := unix.Lgetxattr(filepath.Join(layer, name), key, buf)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) && key != "security.capability" {
			return ""
		}
		if err != nil {
			t.Errorf("%s of %s: %v", key, name, err)
		}
		return string(buf[:max(n, 0)])
	}
	for name, want := range map[string]string{"bin/ping": caps, "bin/ping6": caps, "bin/ping7": caps, "bin/plain": "", "again": "", "bin/su": ""} {
		if got := attr(name, "security.capability"); got != want {
			t.Errorf("%s has capabilities %x, want %x", name, got, want)
		}
	}
	if got := attr("bin/ping", "user.long"); got != "" && got != strings.Repeat("v", 200) {
		t.Errorf("user.long is %q", got)
	}
	for name, want := range map[string]fs.FileMode{"bin/su": 0o755 | fs.ModeSetuid | fs.ModeSetgid, "bin/su2": 0o755 | fs.ModeSetuid | fs.ModeSetgid, "bin/ping": 0o755} {
		if info, err := os.Lstat(filepath.Join(layer, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
	if st := new(syscall.Stat_t); syscall.Lstat(filepath.Join(layer, "bin/ping"), st) != nil || st.Uid != 1000 || st.Gid != 1000 || st.Nlink != 3 {
		t.Errorf("bin/ping has owner %d:%d and %d links", st.Uid, st.Gid, st.Nlink)
	}
}

// Holes come out as zeros, in both of the formats that GNU tar writes, and count in full.
func TestSparse(t *testing.T) {
	needRoot(t)
	old, err := os.ReadFile("testdata/sparse.tar")
	if err != nil {
		t.Fatal(err)
	}
	// PAX 1.0: the map is in the data, which starts with the number of pieces; then offset and size of each.
	data := "1\n1048576\n5\n" + strings.Repeat("\x00", 512-12) + "hello"
	var pax bytes.Buffer
	w := tar.NewWriter(&pax)
	e := file("hole", data)
	e.PAXRecords = map[string]string{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole", "GNU.sparse.realsize": "1048581"}
	if err := writeRaw(w, &pax, e); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		tar     []byte
		size    int64
		content string // at the end
	}{"old GNU": {old, 8 << 20, "\x00"}, "PAX": {pax.Bytes(), 1<<20 + 5, "\x00hello"}} {
		layer, _ := arena(t)
		stats, err := Apply(t.Context(), layer, bytes.NewReader(tt.tar), Limits{})
		if err != nil || stats.Size != tt.size || stats.Disk < tt.size {
			t.Errorf("%s: %+v, %v", name, stats, err)
			continue
		}
		got, err := os.ReadFile(filepath.Join(layer, "hole"))
		if err != nil || int64(len(got)) != tt.size || !bytes.HasSuffix(got, []byte(tt.content)) || len(bytes.Trim(got, "\x00hello")) != 0 {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// writeRaw writes an entry with records that archive/tar does not write: it wants to know nothing of sparse files.
func writeRaw(w *tar.Writer, out *bytes.Buffer, e entry) error {
	var records strings.Builder
	for k, v := range e.PAXRecords {
		n := len(k) + len(v) + 3
		for n != len(fmt.Sprintf("%d %s=%s\n", n, k, v)) {
			n++
		}
		fmt.Fprintf(&records, "%d %s=%s\n", n, k, v)
	}
	header := tar.Header{Name: "PaxHeaders/x", Typeflag: tar.TypeReg, Size: int64(records.Len()), Format: tar.FormatUSTAR}
	if err := w.WriteHeader(&header); err != nil {
		return err
	}
	// Make an extended header of it, with the right checksum.
	block := out.Bytes()[out.Len()-512:]
	block[156] = tar.TypeXHeader
	copy(block[148:], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	if _, err := w.Write([]byte(records.String())); err != nil {
		return err
	}
	e.PAXRecords, e.Format = nil, tar.FormatUSTAR
	if err := w.WriteHeader(&e.Header); err != nil {
		return err
	}
	if _, err := w.Write([]byte(e.content)); err != nil {
		return err
	}
	return w.Close()
}

// zstd:chunked is zstd with skippable frames, which hold what only other readers want; so has eStargz gzip members.
func TestChunked(t *testing.T) {
	plain := bytes.Repeat([]byte("layer "), 1000)
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0}, "meta"...)
	half := len(plain) / 2
	chunked := slices.Concat(compress(t, Zstd, plain[:half]), skippable, compress(t, Zstd, plain[half:]), skippable, skippable)
	var empty bytes.Buffer
	zw := gzip.NewWriter(&empty)
	zw.Extra = []byte("SG\x02\x00xx")
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	stargz := slices.Concat(compress(t, Gzip, plain[:half]), compress(t, Gzip, plain[half:]), empty.Bytes())
	for name, tt := range map[string]struct {
		kind Compression
		data []byte
	}{"zstd:chunked": {Zstd, chunked}, "eStargz": {Gzip, stargz}} {
		r, err := Decompress(tt.kind, bytes.NewReader(tt.data))
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := got.ReadFrom(r); err != nil || !bytes.Equal(got.Bytes(), plain) {
			t.Errorf("%s: %d bytes, %v", name, got.Len(), err)
		}
		r.Close()
	}
}

func TestDepthAndPath(t *testing.T) {
	needRoot(t)
	layer, _ := arena(t)
	deep := strings.Repeat("d/", DefaultDepth-1) + "f"
	if _, err := Apply(t.Context(), layer, bytes.NewReader(tarball(t, file(deep, "x"))), Limits{}); err != nil {
		t.Errorf("as deep as may be: %v", err)
	}
	for name, tt := range map[string]struct {
		entry  entry
		limits Limits
	}{
		"deeper": {file("d/"+deep, ""), Limits{}}, "link": {link(tar.TypeSymlink, "l", strings.Repeat("x", 11)), Limits{Path: 10}},
		"path": {file(strings.Repeat("x", 11), ""), Limits{Path: 10}},
	} {
		layer, _ := arena(t)
		if _, err := Apply(t.Context(), layer, bytes.NewReader(tarball(t, tt.entry)), tt.limits); !errors.Is(err, ErrLimit) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzApply unpacks any tar: nothing outside the folder changes, and limits hold.
func FuzzApply(f *testing.F) {
	f.Add(tarball(f, dir("d"), file("d/f", "x"), link(tar.TypeSymlink, "l", ".."), link(tar.TypeLink, "h", "d/f"), file("d/.wh.x", ""), file("d/.wh..wh..opq", "")))
	f.Add(tarball(f, link(tar.TypeSymlink, "l", "/"), file("l/outside/secret", "x"), file("../x", "x")))
	sparse, err := os.ReadFile("testdata/sparse.tar")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sparse)
	f.Fuzz(func(t *testing.T, data []byte) {
		needRoot(t)
		layer, outside := arena(t)
		stats, err := Apply(t.Context(), layer, bytes.NewReader(data), Limits{Size: 1 << 20, Files: 100, Depth: 16})
		if err == nil && (stats.Size > 1<<20 || stats.Entries > 100) {
			t.Fatalf("stats %+v", stats)
		}
		untouched(t, outside)
	})
}
