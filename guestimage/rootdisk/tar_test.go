// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"
)

// FuzzTar reads archives that are not archives: an error or an image that reads back, never a panic.
func FuzzTar(f *testing.F) {
	sample, err := os.ReadFile(sampleTar(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	f.Add(tarBytes(f, entry{name: "a/b/c", data: "x"}, entry{name: "a/b/d", flag: tar.TypeLink, data: "a/b/c"}))
	f.Add(tarBytes(f, entry{name: "../x", data: "x"}))
	f.Add(tarBytes(f, entry{name: "x", flag: tar.TypeSymlink, data: strings.Repeat("y", 4000)}))
	f.Add(sample[:700])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		spool, err := scratchFile(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer spool.Close()
		root, err := readTar(t.Context(), bytes.NewReader(data), spool, 1<<20)
		if err != nil || root.addMountPoints() != nil {
			return
		}
		image, err := scratchFile(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		if err := writeImage(t.Context(), image, root); err != nil {
			t.Fatalf("a tree that was accepted makes no image: %v", err)
		}
		fsys, err := erofs.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		if err := compare(fsys, root, "."); err != nil {
			t.Fatal(err)
		}
	})
}

// compare checks that the image holds the tree.
func compare(fsys fs.FS, n *node, name string) error {
	st, err := fs.Lstat(fsys, name)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*erofs.Stat) // its Mode has the set-user-ID bits, st.Mode has not
	if !ok || sys.Mode != n.mode || n.mode.IsRegular() && st.Size() != n.size {
		return fmt.Errorf("%q: %v and size %d, want mode %v and size %d", name, sys, st.Size(), n.mode, n.size)
	}
	for child, c := range n.children {
		if err := compare(fsys, c, strings.TrimPrefix(name+"/"+child, "./")); err != nil {
			return err
		}
	}
	return nil
}
