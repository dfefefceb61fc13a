// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/keys"
)

func TestErrors(t *testing.T) {
	folder := t.TempDir()
	long := strings.Repeat("n", 256)
	socket := t.TempDir()
	makeSocket(t, filepath.Join(socket, "s"))
	notDir := t.TempDir()
	if err := os.Symlink("/elsewhere", filepath.Join(notDir, "proc")); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(plain, bytes.Repeat([]byte("no archive"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	gz := filepath.Join(t.TempDir(), "gz")
	if err := os.WriteFile(gz, []byte("\x1f\x8b\x08 and so on"), 0o600); err != nil {
		t.Fatal(err)
	}
	whole := tarBytes(t, entry{name: "a", data: strings.Repeat("a", 3000)})
	cut := filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(cut, whole[:1024], 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ source, want string }{
		"missing":            {filepath.Join(folder, "none"), "no such file"},
		"device":             {"/dev/null", "want a folder or a tar archive"},
		"unnamed":            {"", "must be named"},
		"no archive":         {plain, "read tar archive"},
		"compressed":         {gz, "compressed with gzip"},
		"cut":                {cut, "unexpected EOF"},
		"empty archive":      {writeTar(t), "tar archive is empty"},
		"socket":             {socket, "s: a socket cannot be part"},
		"mount point":        {notDir, "/proc is a L---------, but the agent needs a directory"},
		"parent":             {writeTar(t, entry{name: "../x", data: "x"}), "leads out of the root"},
		"parent inside":      {writeTar(t, entry{name: "a/../../x", data: "x"}), "leads out of the root"},
		"absolute":           {writeTar(t, entry{name: "/etc/x", data: "x"}), "name is absolute"},
		"through a link":     {writeTar(t, entry{name: "l", flag: tar.TypeSymlink, data: "/etc"}, entry{name: "l/x", data: "x"}), "l is not a directory"},
		"below a file":       {writeTar(t, entry{name: "f", data: "x"}, entry{name: "f/x", data: "x"}), "f is not a directory"},
		"directory replaced": {writeTar(t, entry{name: "d/x", data: "x"}, entry{name: "d", data: "x"}), "replaces a directory"},
		"hard link early":    {writeTar(t, entry{name: "h", flag: tar.TypeLink, data: "later"}, entry{name: "later", data: "x"}), "no earlier entry"},
		"hard link to dir":   {writeTar(t, entry{name: "d/", flag: tar.TypeDir}, entry{name: "h", flag: tar.TypeLink, data: "d"}), "to the directory"},
		"hard link outside":  {writeTar(t, entry{name: "h", flag: tar.TypeLink, data: "../x"}), "leads out of the root"},
		"long name":          {writeTar(t, entry{name: long, data: "x"}), "longer than 255"},
		"long target":        {writeTar(t, entry{name: "l", flag: tar.TypeSymlink, data: strings.Repeat("x/", 2048)}), "symbolic link"},
		"root is a file":     {writeTar(t, entry{name: ".", data: "x"}), "not a directory"},
		"device number":      {writeTar(t, entry{name: "n", flag: tar.TypeChar, dev: [2]int64{4096, 0}}), "device number"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			output := filepath.Join(dir, "root.img")
			if err := os.WriteFile(output, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Write(t.Context(), Options{Source: tc.source, Output: output, Key: testKey()})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			onlyOld(t, output)
		})
	}
}

// onlyOld checks that the output is untouched and that nothing lies beside it.
func onlyOld(t *testing.T, output string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(output))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
	if data, err := os.ReadFile(output); err != nil || string(data) != "old" {
		t.Errorf("output changed: %q, %v", data, err)
	}
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		o    Options
		want string
	}{
		"no key":     {Options{Source: dir, Output: filepath.Join(dir, "x")}, "disk key has 0 bytes"},
		"short key":  {Options{Source: dir, Output: filepath.Join(dir, "x"), Key: keys.NewSecret(make([]byte, 63))}, "disk key has 63 bytes"},
		"no output":  {Options{Source: dir, Key: testKey()}, "must be named"},
		"no folder":  {Options{Source: dir, Output: filepath.Join(dir, "none/x"), Key: testKey()}, "no such file"},
		"no entropy": {Options{Source: dir, Output: filepath.Join(dir, "x"), Key: testKey(), Rand: bytes.NewReader(nil)}, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Write(t.Context(), tc.o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	output := filepath.Join(t.TempDir(), "root.img")
	if err := os.WriteFile(output, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{sampleTar(t), t.TempDir()} {
		_, err := Write(ctx, Options{Source: source, Output: output, Key: testKey()})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		onlyOld(t, output)
	}
}

// TestShrinkingFile covers a source that changes while it is read: the image is laid out by then.
func TestShrinkingFile(t *testing.T) {
	root := newDir(0o755)
	n := &node{mode: 0o644, size: 10, open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("short")), nil }}
	if err := root.put("f", n); err != nil {
		t.Fatal(err)
	}
	_, err := fs.ReadFile(&treeFS{ctx: t.Context(), root: root}, "f")
	if err == nil || !strings.Contains(err.Error(), "became shorter") {
		t.Errorf("error %v", err)
	}
}
