// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/image/unpack"
	"github.com/cloister-cc/cloister/internal/testns"
)

// capability is one that the kernel takes: revision 2, CAP_NET_RAW permitted.
var capability = "\x01\x00\x00\x02" + "\x00\x20\x00\x00" + strings.Repeat("\x00", 12)

func dirEntry(name string) entry { return entry{name: name, flag: tar.TypeDir, mode: 0o755} }

func fileEntry(name, data string) entry { return entry{name: name, mode: 0o644, data: data} }

func linkEntry(flag byte, name, target string) entry {
	return entry{name: name, flag: flag, mode: 0o777, data: target}
}

func whiteout(name string) entry { return entry{name: name} }

// stack is an image, and what a container of it sees: one line a file.
type stack struct {
	layers [][]entry
	want   []string
	// unlikeOverlay says why a guest shows something else.
	unlikeOverlay string
}

func stacks() map[string]stack {
	return map[string]stack{
		"attributes": {
			layers: [][]entry{{
				{name: "bin/", flag: tar.TypeDir, mode: 0o1770, uid: 7},
				{name: "bin/su", mode: 0o4755, data: "su"},
				{name: "bin/wall", mode: 0o2755, data: "w", uid: 65534},
				{name: "bin/ping", mode: 0o755, data: "ping", pax: map[string]string{
					"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.note": "hi", "SCHILY.xattr.trusted.overlay.opaque": "y",
				}},
				linkEntry(tar.TypeSymlink, "bin/abs", "/etc/nowhere"),
				{name: "run/pipe", flag: tar.TypeFifo, mode: 0o640},
				{name: "dev/null", flag: tar.TypeChar, mode: 0o666, dev: [2]int64{1, 3}},
				{name: "forged", flag: tar.TypeChar, mode: 0o666},
			}},
			want: []string{
				"/bin d1770 7:7", "/bin/abs l777 0:0 -> /etc/nowhere",
				"/bin/ping -755 0:0 \"ping\" security.capability=" + hex.EncodeToString([]byte(capability)) + " user.note=6869",
				"/bin/su -4755 0:0 \"su\"", "/bin/wall -2755 65534:65534 \"w\"", "/run d755 0:0", "/run/pipe p640 0:0",
			},
		},
		"replaced": {
			layers: [][]entry{
				{
					fileEntry("f", "old"), dirEntry("d/"), fileEntry("d/x", "x"), fileEntry("file-to-dir", "f"), linkEntry(tar.TypeSymlink, "l", "d"),
					{name: "keeps", flag: tar.TypeDir, mode: 0o700, uid: 9},
					fileEntry("keeps/it", "it"),
				},
				{
					{name: "f", mode: 0o600, data: "new"},
					fileEntry("d", "no folder now"), fileEntry("file-to-dir/in", "in"),
					fileEntry("l/in", "in"),
					{name: "keeps/", flag: tar.TypeDir, mode: 0o750, uid: 3},
				},
			},
			want: []string{
				"/d -644 0:0 \"no folder now\"", "/f -600 0:0 \"new\"", "/file-to-dir d755 0:0", "/file-to-dir/in -644 0:0 \"in\"",
				"/keeps d750 3:3", "/keeps/it -644 0:0 \"it\"", "/l d755 0:0", "/l/in -644 0:0 \"in\"",
			},
		},
		"a file comes and goes as a folder": {
			layers: [][]entry{{fileEntry("a/b", "b")}, {whiteout("a/.wh.b"), whiteout(".wh.a")}, {fileEntry("a/c", "c")}},
			want:   []string{"/a d755 0:0", "/a/c -644 0:0 \"c\""},
		},
		"whiteouts": {
			layers: [][]entry{
				{fileEntry("a/gone", "1"), fileEntry("a/stays", "2"), fileEntry("b/deep/x", "3"), fileEntry("c", "4"), linkEntry(tar.TypeSymlink, "s", "c")},
				{whiteout("a/.wh.gone"), whiteout(".wh.b"), whiteout(".wh.s"), whiteout(".wh.never-there"), whiteout("a/.wh..wh.plnk")},
				{fileEntry("b/new", "5")},
			},
			want: []string{"/a d755 0:0", "/a/stays -644 0:0 \"2\"", "/b d755 0:0", "/b/new -644 0:0 \"5\"", "/c -644 0:0 \"4\""},
		},
		"a whiteout is about lower layers only": {
			layers: [][]entry{
				{fileEntry("f", "old"), fileEntry("d/old", "old"), fileEntry("e/old", "old")},
				{fileEntry("f", "new"), whiteout(".wh.f"), whiteout(".wh.d"), dirEntry("d/"), fileEntry("d/new", "new"), fileEntry("e/new", "new"), whiteout(".wh.e")},
			},
			want: []string{"/d d755 0:0", "/d/new -644 0:0 \"new\"", "/e d755 0:0", "/e/new -644 0:0 \"new\"", "/f -644 0:0 \"new\""},
		},
		"opaque": {
			layers: [][]entry{
				{fileEntry("o/old", "1"), fileEntry("o/sub/old", "2"), fileEntry("late/old", "3")},
				{dirEntry("o/"), whiteout("o/.wh..wh..opq"), fileEntry("o/sub/new", "4"), fileEntry("late/new", "5"), whiteout("late/.wh..wh..opq")},
			},
			want: []string{"/late d755 0:0", "/late/new -644 0:0 \"5\"", "/o d755 0:0", "/o/sub d755 0:0", "/o/sub/new -644 0:0 \"4\""},
		},
		"opaque with a third layer": {
			layers: [][]entry{
				{fileEntry("o/a", "1")}, {whiteout("o/.wh..wh..opq"), fileEntry("o/b", "2")}, {fileEntry("o/c", "3"), whiteout("o/.wh.b")},
			},
			want: []string{"/o d755 0:0", "/o/c -644 0:0 \"3\""},
		},
		"opaque root": {
			layers:        [][]entry{{fileEntry("old", "1")}, {whiteout(".wh..wh..opq"), fileEntry("new", "2")}},
			want:          []string{"/new -644 0:0 \"2\""},
			unlikeOverlay: "overlayfs merges root folders whatever their attributes",
		},
		"hard links": {
			layers: [][]entry{
				{
					{name: "bin/one", mode: 0o755, data: "one", pax: map[string]string{"SCHILY.xattr.security.capability": capability}},
					{name: "bin/two", flag: tar.TypeLink, mode: 0o755, data: "bin/one", uid: 5},
					linkEntry(tar.TypeSymlink, "sl", "bin/one"),
					linkEntry(tar.TypeLink, "hl", "sl"),
				},
				{whiteout("bin/.wh.one"), fileEntry("bin/three", "three"), {name: "bin/four", flag: tar.TypeLink, mode: 0o644, data: "/bin/three"}, fileEntry("bin/three", "again")},
			},
			want: []string{
				"/bin d755 0:0", "/bin/four -644 0:0 \"three\"", "/bin/three -644 0:0 \"again\"",
				"/bin/two -755 5:5 \"one\" security.capability=" + hex.EncodeToString([]byte(capability)),
				"/hl l777 0:0 -> bin/one", "/sl l777 0:0 -> bin/one",
			},
		},
		"symbolic links on the way": {
			layers: [][]entry{
				{dirEntry("usr/lib/"), linkEntry(tar.TypeSymlink, "lib", "usr/lib"), fileEntry("lib/a", "a"), linkEntry(tar.TypeSymlink, "up", "../../../../usr"), fileEntry("up/b", "b")},
				{linkEntry(tar.TypeSymlink, "x", "/made/here"), fileEntry("x/c", "c"), {name: "/abs/d", mode: 0o644, data: "d"}},
			},
			want: []string{
				"/abs d755 0:0", "/abs/d -644 0:0 \"d\"", "/lib l777 0:0 -> usr/lib", "/made d755 0:0", "/made/here d755 0:0",
				"/made/here/c -644 0:0 \"c\"", "/up l777 0:0 -> ../../../../usr", "/usr d755 0:0", "/usr/b -644 0:0 \"b\"",
				"/usr/lib d755 0:0", "/usr/lib/a -644 0:0 \"a\"", "/x l777 0:0 -> /made/here",
			},
		},
		"twice in a layer": {
			layers: [][]entry{{
				fileEntry("f", "first"),
				{name: "f", mode: 0o600, data: "second"},
				dirEntry("d/"), fileEntry("d/kept", "k"),
				{name: "d/", flag: tar.TypeDir, mode: 0o700},
				fileEntry("g/h", "h"), fileEntry("g", "g"),
			}},
			want: []string{"/d d700 0:0", "/d/kept -644 0:0 \"k\"", "/f -600 0:0 \"second\"", "/g -644 0:0 \"g\""},
		},
	}
}

func newLayered(t *testing.T) *Layered {
	t.Helper()
	l, err := NewLayered(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func layered(t *testing.T, layers [][]entry) *Layered {
	t.Helper()
	l := newLayered(t)
	for _, entries := range layers {
		if _, err := l.Apply(t.Context(), bytes.NewReader(tarBytes(t, entries...)), unpack.Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// lines describes a tree as stack.want does.
func (n *node) lines(t *testing.T, name string) []string {
	t.Helper()
	var out []string
	for _, child := range n.names() {
		c := n.children[child]
		full := name + "/" + child
		line := fmt.Sprintf("%s %s%o %d:%d", full, kind(c.mode), unixMode(c.mode), c.uid, c.gid)
		switch c.mode.Type() {
		case 0:
			var data []byte
			if c.size > 0 {
				r, err := c.open()
				if err != nil {
					t.Fatal(err)
				}
				if data, err = io.ReadAll(r); err != nil {
					t.Fatal(err)
				}
			}
			line += fmt.Sprintf(" %q", data)
		case fs.ModeSymlink:
			line += " -> " + c.target
		default:
		}
		for _, attr := range slices.Sorted(maps.Keys(c.xattrs)) {
			line += fmt.Sprintf(" %s=%x", attr, c.xattrs[attr])
		}
		out = append(append(out, line), c.lines(t, full)...)
	}
	return out
}

func kind(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "-"
	case fs.ModeDir:
		return "d"
	case fs.ModeSymlink:
		return "l"
	case fs.ModeNamedPipe:
		return "p"
	default:
		return "?"
	}
}

func unixMode(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	for b, f := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&f != 0 {
			bits |= b
		}
	}
	return bits
}

func TestLayered(t *testing.T) {
	t.Parallel()
	for name, tt := range stacks() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, layered(t, tt.layers).root.lines(t, "")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestLayeredLikeOverlay compares with what a guest mounts of the same layers.
func TestLayeredLikeOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_QEMU") == "1" {
			t.Fatal("layers are unpacked with the rights of root")
		}
		t.Skip("layers are unpacked with the rights of root")
	}
	if !testns.Inside(t) {
		return
	}
	for name, tt := range stacks() {
		if tt.unlikeOverlay != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, overlaid(t, tt.layers)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// overlaid unpacks layers as a guest does, mounts them, and describes what a container sees.
func overlaid(t *testing.T, layers [][]entry) []string {
	t.Helper()
	top := t.TempDir()
	if err := unix.Mount("tmpfs", top, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string {
		dir := filepath.Join(top, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	var lower []string
	for i, entries := range layers {
		dir := in(fmt.Sprint(i))
		if _, err := unpack.Apply(t.Context(), dir, bytes.NewReader(tarBytes(t, entries...)), unpack.Limits{}); err != nil {
			t.Fatal(err)
		}
		lower = append([]string{dir}, lower...)
	}
	target := in("target")
	options := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + in("upper") + ",workdir=" + in("work")
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	root, closeFolder, err := openFolder(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	lines := root.lines(t, "")
	closeFolder()
	for _, dir := range []string{target, top} {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
	return lines
}

// What a hostile or broken layer gets.
func TestLayeredErrors(t *testing.T) {
	t.Parallel()
	many := make([]entry, 6)
	for i := range many {
		many[i] = fileEntry(fmt.Sprint(i), "12345678")
	}
	for name, tt := range map[string]struct {
		entries []entry
		limits  unpack.Limits
		want    string
		limit   bool
	}{
		"parent":                 {entries: []entry{fileEntry("../x", "x")}, want: "outside its root"},
		"whiteout of the parent": {entries: []entry{fileEntry("a/.wh...", "")}, want: "names no file"},
		"whiteout of nothing":    {entries: []entry{fileEntry("a/.wh.", "")}, want: "names no file"},
		"below a file":           {entries: []entry{fileEntry("f", "f"), fileEntry("f/x", "x")}, want: "not a folder"},
		"below a whiteout":       {entries: []entry{whiteout(".wh.f"), fileEntry("f/x", "x")}, want: "not a folder"},
		"loop":                   {entries: []entry{linkEntry(tar.TypeSymlink, "l", "l"), fileEntry("l/x", "x")}, want: "too many symbolic links"},
		"link to nothing":        {entries: []entry{linkEntry(tar.TypeLink, "h", "nowhere")}, want: "no earlier entry"},
		"link to itself":         {entries: []entry{fileEntry("h", "h"), linkEntry(tar.TypeLink, "h", "h")}, want: "no earlier entry"},
		"link to a whiteout":     {entries: []entry{whiteout(".wh.f"), linkEntry(tar.TypeLink, "h", "f")}, want: "no earlier entry"},
		"link to a folder":       {entries: []entry{dirEntry("d/"), linkEntry(tar.TypeLink, "h", "d")}, want: "the folder"},
		"long name":              {entries: []entry{fileEntry(strings.Repeat("n", 256), "")}, want: "longer than 255"},
		"empty symbolic link":    {entries: []entry{linkEntry(tar.TypeSymlink, "l", "")}, want: "target"},
		"unknown type":           {entries: []entry{{name: "x", flag: 'Z', mode: 0o644}}, want: "not supported"},
		"size":                   {entries: many, limits: unpack.Limits{Size: 40}, want: "more than 40 bytes", limit: true},
		"files":                  {entries: many, limits: unpack.Limits{Files: 5}, want: "more than 5 files", limit: true},
		"folders without entry":  {entries: []entry{fileEntry("a/b/c/d/e/f", "")}, limits: unpack.Limits{Files: 5}, want: "too many files and folders", limit: true},
		"depth":                  {entries: []entry{fileEntry("a/b/c", "")}, limits: unpack.Limits{Depth: 2}, want: "folders in each other", limit: true},
		"deep by links": {
			entries: []entry{linkEntry(tar.TypeSymlink, "a", strings.Repeat("d/", 2040)), linkEntry(tar.TypeSymlink, "b", "a/"+strings.Repeat("d/", 2000)), fileEntry("b/x", "")},
			want:    "longer than 4095",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := newLayered(t).Apply(t.Context(), bytes.NewReader(tarBytes(t, tt.entries...)), tt.limits)
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, unpack.ErrLimit) != tt.limit {
				t.Errorf("error %v, want %q, a limit: %v", err, tt.want, tt.limit)
			}
		})
	}
}

// Layers that are small by themselves are too large together, and so are names of one file.
func TestLayeredTooLarge(t *testing.T) {
	t.Parallel()
	for name, layers := range map[string][][]entry{
		"layers":     {{fileEntry("a", strings.Repeat("a", 60))}, {fileEntry("a", strings.Repeat("b", 60))}},
		"hard links": {{fileEntry("a", strings.Repeat("a", 60)), linkEntry(tar.TypeLink, "b", "a")}},
	} {
		l := newLayered(t)
		l.limit = 100
		var err error
		for _, entries := range layers {
			_, err = l.Apply(t.Context(), bytes.NewReader(tarBytes(t, entries...)), unpack.Limits{})
		}
		if !errors.Is(err, unpack.ErrLimit) || !strings.Contains(err.Error(), "100 bytes") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLayeredEndsWithContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newLayered(t).Apply(ctx, bytes.NewReader(tarBytes(t, fileEntry("a", "a"))), unpack.Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// An image in the disk is below its path, and below the root hash.
func TestWriteWithImages(t *testing.T) {
	t.Parallel()
	images := func(t *testing.T) map[string]*Layered {
		t.Helper()
		return map[string]*Layered{"/cloister/images/b/rootfs": layered(t, [][]entry{{fileEntry("b", "b")}}), "/cloister/images/a/rootfs": layered(t, stacks()["attributes"].layers)}
	}
	source := writeTar(t, dirEntry("etc/"))
	var first []byte
	for i := range 2 {
		out := filepath.Join(t.TempDir(), "disk")
		r, err := Write(t.Context(), Options{Source: source, Images: images(t), Output: out, Key: testKey(), Rand: testRandom()})
		if err != nil {
			t.Fatal(err)
		}
		disk, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = disk
			payload := decrypt(t, out, r)
			if err := verify(t, payload, r); err != nil {
				t.Error(err)
			}
			checkListing(t, listing(t, payload[:r.DataSize]))
		} else if !bytes.Equal(first, disk) {
			t.Error("the same images made another disk")
		}
	}
	for name, tt := range map[string]struct {
		entry entry
		want  string
	}{
		"something is there": {fileEntry("cloister/images/b/rootfs/x", ""), "is there already"},
		"through a link":     {linkEntry(tar.TypeSymlink, "cloister", "etc"), "not a directory"},
	} {
		_, err := Write(t.Context(), Options{Source: writeTar(t, tt.entry), Images: images(t), Output: filepath.Join(t.TempDir(), "d"), Key: testKey()})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func checkListing(t *testing.T, lines []string) {
	t.Helper()
	for _, want := range []string{
		" cloister/images/a/rootfs 0:0 mtime=0", " cloister/images/b/rootfs/b 0:0 mtime=0 links=1 \"b\"",
		" cloister/images/a/rootfs/bin/wall 65534:65534 mtime=0 links=1 \"w\"",
		"security.capability=" + hex.EncodeToString([]byte(capability)), "user.note=6869",
	} {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, want) }) {
			t.Errorf("no %q in\n%s", want, strings.Join(lines, "\n"))
		}
	}
	if slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, "trusted.") || strings.Contains(l, "rootfs/dev") }) {
		t.Error("a trusted attribute or a device came along")
	}
}

// FuzzLayers reads two layers that are not layers: an error or a tree that makes an image, never a panic.
func FuzzLayers(f *testing.F) {
	for _, s := range stacks() {
		first := tarBytes(f, s.layers[0]...)
		for _, l := range s.layers {
			f.Add(first, tarBytes(f, l...))
		}
	}
	f.Add([]byte{}, []byte("garbage"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		l := newLayered(t)
		l.limit = 1 << 20
		for _, data := range [][]byte{first, second} {
			if _, err := l.Apply(t.Context(), bytes.NewReader(data), unpack.Limits{Size: 1 << 20, Files: 1000}); err != nil {
				return
			}
		}
		root := newDir(0o755)
		if err := root.addImages(map[string]*Layered{"/image": l}); err != nil {
			t.Fatal(err)
		}
		image, err := scratchFile(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		if err := writeImage(t.Context(), image, root); err != nil {
			t.Fatalf("layers that were accepted make no image: %v", err)
		}
	})
}
