// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func smallTree(tb testing.TB) *Tree {
	tb.Helper()
	source := filepath.Join(tb.TempDir(), "source")
	must(tb, os.WriteFile(source, bytes.Repeat([]byte("streamed "), 100), 0o600))
	t := &Tree{}
	for _, f := range []File{ // not in the order of the archive
		{Path: "/init", Mode: 0o755, Data: []byte("#!agent")},
		{Path: "/cloister/secrets/disk.key", Mode: 0o600, Data: []byte("not so secret"), Secret: true},
		{Path: "/cloister/secrets", Mode: fs.ModeDir | 0o700},
		{Path: "/dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
		{Path: "/cloister/bin/crun", Mode: 0o755, Source: source},
		{Path: "/cloister-other", Mode: 0o644},
		{Path: "/lib", Mode: fs.ModeSymlink | 0o777, Target: "cloister/lib"},
	} {
		must(tb, t.Add(f))
	}
	return t
}

func archive(tb testing.TB, t *Tree) []byte {
	tb.Helper()
	var b bytes.Buffer
	must(tb, t.Write(context.Background(), &b))
	return b.Bytes()
}

// TestWriteGolden compares an archive, byte for byte, with one that was checked against Debian's cpio.
func TestWriteGolden(t *testing.T) {
	t.Parallel()
	got := archive(t, smallTree(t))
	const file = "testdata/small.cpio.hex"
	if *update {
		must(t, os.WriteFile(file, []byte(hex.Dump(got)), 0o600))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if diff := cmp.Diff(string(want), hex.Dump(got)); diff != "" {
		t.Error(diff)
	}
	if len(got)%archiveAlign != 0 {
		t.Errorf("%d bytes are not whole blocks", len(got))
	}
}

func TestWriteIsReproducible(t *testing.T) {
	t.Parallel()
	for _, c := range []Compression{CompressNone, CompressZstd} {
		var images [2]bytes.Buffer
		for i := range images {
			must(t, smallTree(t).WriteImage(t.Context(), &images[i], c))
		}
		if !bytes.Equal(images[0].Bytes(), images[1].Bytes()) {
			t.Errorf("%s: two images of the same files differ", c)
		}
	}
}

func TestReadBack(t *testing.T) {
	t.Parallel()
	for _, c := range []Compression{CompressNone, CompressZstd} {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			tree := smallTree(t)
			want, err := tree.Manifest()
			must(t, err)
			var b bytes.Buffer
			must(t, tree.WriteImage(t.Context(), &b, c))
			got, err := Inspect(&b, func(p string) bool { return strings.HasPrefix(p, "/cloister/secrets/") })
			must(t, err)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			for _, e := range got.Entries {
				if (e.SHA256 == "") != (e.Kind != "file" || e.Secret) {
					t.Errorf("%s: hash %q", e.Path, e.SHA256)
				}
			}
		})
	}
}

func TestReaderHeaders(t *testing.T) {
	t.Parallel()
	r := NewReader(bytes.NewReader(archive(t, smallTree(t))))
	for ino := uint32(1); ; ino++ {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			if _, err := r.Next(); !errors.Is(err, io.EOF) || ino != 11 {
				t.Errorf("%d entries, then %v", ino-1, err)
			}
			return
		}
		must(t, err)
		if e.Inode != ino || e.UID != 0 || e.GID != 0 || e.ModTime != 0 {
			t.Errorf("%+v, want inode %d and nothing of owner and time", e, ino)
		}
	}
}

// TestDebianCpio unpacks our archive's list and contents with GNU cpio.
func TestDebianCpio(t *testing.T) {
	t.Parallel()
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		if os.Getenv("REQUIRE_QEMU") == "1" {
			t.Fatal("cpio is not installed, but REQUIRE_QEMU=1")
		}
		t.Skip("cpio is not installed")
	}
	list := exec.CommandContext(t.Context(), cpio, "-t", "--quiet")
	list.Stdin = bytes.NewReader(archive(t, smallTree(t)))
	out, err := list.Output()
	must(t, err)
	want := "cloister\ncloister-other\ncloister/bin\ncloister/bin/crun\ncloister/secrets\ncloister/secrets/disk.key\n" +
		"dev\ndev/console\ninit\nlib\n"
	if string(out) != want {
		t.Errorf("cpio lists %q, want %q", out, want)
	}
	unpack := exec.CommandContext(t.Context(), cpio, "-i", "--to-stdout", "--quiet", "init")
	unpack.Stdin = bytes.NewReader(archive(t, smallTree(t)))
	if out, err = unpack.Output(); err != nil || string(out) != "#!agent" {
		t.Errorf("cpio unpacks %q, error %v", out, err)
	}
}

func TestAddRefuses(t *testing.T) {
	t.Parallel()
	long := "/" + strings.Repeat("x", MaxPathSize)
	for name, f := range map[string]File{
		"relative":            {Path: "a"},
		"root":                {Path: "/"},
		"not clean":           {Path: "/a/../b"},
		"trailing slash":      {Path: "/a/"},
		"NUL":                 {Path: "/a\x00b"},
		"long":                {Path: long},
		"trailer":             {Path: "/TRAILER!!!"},
		"set-uid":             {Path: "/a", Mode: fs.ModeSetuid | 0o755},
		"sticky":              {Path: "/a", Mode: fs.ModeDir | fs.ModeSticky | 0o755},
		"block device":        {Path: "/a", Mode: fs.ModeDevice | 0o600},
		"pipe":                {Path: "/a", Mode: fs.ModeNamedPipe},
		"folder with content": {Path: "/a", Mode: fs.ModeDir, Data: []byte("x")},
		"link without target": {Path: "/a", Mode: fs.ModeSymlink},
		"link with NUL":       {Path: "/a", Mode: fs.ModeSymlink, Target: "b\x00"},
		"two contents":        {Path: "/a", Data: []byte("x"), Source: "b"},
		"file with target":    {Path: "/a", Target: "b"},
		"twice":               {Path: "/init"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tree := &Tree{}
			must(t, tree.Add(File{Path: "/init"}))
			if err := tree.Add(f); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	huge := filepath.Join(t.TempDir(), "huge")
	must(t, os.WriteFile(huge, nil, 0o600))
	must(t, os.Truncate(huge, MaxFileSize+1)) // sparse
	for name, tc := range map[string]struct {
		files []File
		want  string
	}{
		"below a file":   {[]File{{Path: "/a"}, {Path: "/a/b"}}, "is not a directory"},
		"below a link":   {[]File{{Path: "/a", Mode: fs.ModeSymlink, Target: "b"}, {Path: "/a/b/c"}}, "is not a directory"},
		"too large":      {[]File{{Path: "/a", Source: huge}}, "4294967295 bytes"},
		"source missing": {[]File{{Path: "/a", Source: huge + "r"}}, "no such file"},
		"source folder":  {[]File{{Path: "/a", Source: filepath.Dir(huge)}}, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tree := &Tree{}
			for _, f := range tc.files {
				must(t, tree.Add(f))
			}
			if err := tree.Write(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

// TestWriteNoticesChange: what the manifest says must be what the image holds.
func TestWriteNoticesChange(t *testing.T) {
	t.Parallel()
	source := filepath.Join(t.TempDir(), "agent")
	must(t, os.WriteFile(source, []byte("old agent"), 0o600))
	tree := &Tree{}
	must(t, tree.Add(File{Path: "/init", Mode: 0o755, Source: source}))
	_, err := tree.Manifest()
	must(t, err)
	must(t, os.WriteFile(source, []byte("new agent"), 0o600))
	if err := tree.Write(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "has changed") {
		t.Errorf("error %v, want one about the change", err)
	}
}

func TestWriteStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := smallTree(t).Write(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

func TestWriteImageRefuses(t *testing.T) {
	t.Parallel()
	if err := smallTree(t).WriteImage(t.Context(), io.Discard, "lzma"); err == nil {
		t.Error("no error")
	}
	if _, err := ParseCompression("lzma"); err == nil {
		t.Error("no error")
	}
	if c, err := ParseCompression(""); err != nil || c != CompressNone {
		t.Errorf("default %q, %v", c, err)
	}
}
