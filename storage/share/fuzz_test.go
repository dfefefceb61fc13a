// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package share

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzCopy makes a random sequence of copies (3 bytes each: path, kind and options, offset and length) and reads back
// through every other function. Nothing outside the shared folder may change or be read.
func FuzzCopy(f *testing.F) {
	f.Add([]byte{0, 0, 0})
	f.Add([]byte{2, 2, 3, 7, 0, 4})                   // a link to the outside, and a file through it
	f.Add([]byte{5, 0, 0x12, 5, 2, 2, 5, 0, 0x24})    // a link over an unfinished file
	f.Add([]byte{0, 1, 0, 4, 0, 4, 0, 2, 2, 4, 0, 4}) // a folder with a file becomes a link
	f.Add([]byte{1, 3, 4, 9, 0, 4, 8, 1, 0, 10, 4, 5})
	f.Fuzz(func(t *testing.T, ops []byte) {
		d, root, outside := open(t)
		paths := []string{
			"/a", "/b", "/out", "/..", "/a/x", "/b/y", "/out/secret", "/out/new", "/a/../../outside/secret", "/b/y/z", "/a/x/q", "/" + reserved,
		}
		targets := []string{outside, "../../outside", "../../outside/secret", "/etc", "b", "."}
		before := tree(t, filepath.Dir(outside)+"/outside")
		for ; len(ops) >= 3 && len(ops) < 300; ops = ops[3:] {
			name := root + paths[int(ops[0])%len(paths)]
			c := file(name, []uint32{reg, dir, link, 0}[ops[1]%4]|uint32(ops[1])<<3&0o7777|0o700, "")
			switch c.Mode & unix.S_IFMT {
			case link:
				c.Data = []byte(targets[int(ops[2])%len(targets)])
			case reg, 0:
				c.Data, c.Offset, c.Size = []byte("evil bad worst!!")[:ops[2]&15], int64(ops[2]>>4), int64(ops[1]>>4)
			}
			_ = d.Copy(c) // many fail, rightly
			if f, err := d.OpenBeneath(name); err == nil {
				inside(t, root, f)
				f.Close()
			}
			if data, err := d.ReadHead(name, 100); err == nil && string(data) == "secret" {
				t.Errorf("%s shows the secret", name)
			}
		}
		if after := tree(t, outside); after != before {
			t.Errorf("outside changed from\n%s to\n%s", before, after)
		}
		entries, err := os.ReadDir(filepath.Dir(root))
		if err != nil || len(entries) != 1 {
			t.Errorf("beside the shared folder: %v, %v", entries, err)
		}
		noLeftover(t, root)
	})
}

// inside checks that an open file lies below root.
func inside(t *testing.T, root string, f *os.File) {
	t.Helper()
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Readlink(procPath(f))
	if err != nil || len(name) <= len(real) || name[:len(real)+1] != real+"/" {
		t.Errorf("opened %q, %v", name, err)
	}
}
