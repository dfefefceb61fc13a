// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/store"
)

// tmpfs mounts one for an image store.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "images")
}

// random is content that does not compress.
func random(n int) string {
	var b strings.Builder
	b.Grow(n)
	for x := uint32(1); b.Len() < n; {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b.WriteByte(byte(x))
	}
	return b.String()
}

// An image that does not fit fails by one clear error, before it begins or in the middle of it. Other images, and their
// containers, do not notice; what no container uses makes room.
func TestSpace(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	image := func(tag, kind string, files map[string]string) {
		addImage(t, r, tag, build(t, r, kind, tarball(t, files), nil))
	}
	image("small", "gzip", map[string]string{"f": random(1 << 20)})
	image("other", "none", map[string]string{"f": random(6 << 20)})
	image("big", "none", map[string]string{"f": random(20 << 20)})
	image("squeezed", "gzip", map[string]string{"f": strings.Repeat("x", 40<<20)})
	many := make(map[string]string)
	for i := range 2000 {
		many[fmt.Sprint("file", i)] = ""
	}
	image("many", "gzip", many)
	root := tmpfs(t, "size=16m,nr_inodes=1000")
	s, m := service(t, r, func(c *Config) { c.Root = root })
	mount := func(tag, id string) error { return mount(t.Context(), s, id, r.Reference(tag), "/"+id) }
	if err := mount("small", "c1"); err != nil {
		t.Fatal(err)
	}
	fails := func(tag, what string) {
		t.Helper()
		before := r.Requests("GET")
		err := mount(tag, "c2")
		contains(t, err, what, "give the guest more memory or a larger scratch disk")
		if _, ok := errors.AsType[*store.SpaceError](err); !ok || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: error %v", tag, err)
		}
		if tag == "big" && r.Requests("GET") > before+2 { // manifest and config
			t.Error("a layer was fetched that cannot fit")
		}
		layers, staging := stored(t, s)
		if len(staging) != 0 || len(layers) > 2 {
			t.Errorf("%s: layers %v, staging %v", tag, layers, staging)
		}
		if got := m.read(t, "/c1", "f"); got != random(1<<20) {
			t.Errorf("%s: the other image's f has %d bytes", tag, len(got))
		}
	}
	fails("big", "20 MiB needed")
	fails("squeezed", "the image store is full")
	fails("many", "no room for more files")
	for i, tag := range []string{"other", "small", "other"} {
		id := fmt.Sprint("d", i)
		if err := mount(tag, id); err != nil {
			t.Fatal(err)
		}
		if err := s.Unmount(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	image("last", "none", map[string]string{"f": random(9 << 20)})
	if err := mount("last", "c3"); err != nil {
		t.Errorf("an image that fits once an unused one is gone: %v", err)
	}
	if layers, _ := stored(t, s); len(layers) != 2 {
		t.Errorf("layers %v, want those of the two containers", layers)
	}
}
