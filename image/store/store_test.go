// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// needMounts skips a test that mounts; where all tests are to run it must not.
func needMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_QEMU") == "1" {
		t.Fatal("mounting needs the rights of root")
	}
	t.Skip("mounting needs the rights of root")
}

// scratch is a folder on a tmpfs, as in a guest: an overlay's upper folder cannot be on another overlay.
func scratch(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func commit(t *testing.T, s *Store, name string, fill func(dir string)) Layer {
	t.Helper()
	st, err := s.NewStaging()
	if err != nil {
		t.Fatal(err)
	}
	fill(st.Dir())
	d := digest.FromString(name)
	l, err := st.Commit(Layer{Blob: d, DiffID: d})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

func TestOverlay(t *testing.T) {
	needMounts(t)
	top := scratch(t)
	s, err := Open(Config{Root: filepath.Join(top, "images")})
	if err != nil {
		t.Fatal(err)
	}
	base := commit(t, s, "base", func(d string) {
		write(t, filepath.Join(d, "both"), "base")
		write(t, filepath.Join(d, "gone"), "base")
		write(t, filepath.Join(d, "opaque/old"), "base")
	})
	upper := commit(t, s, "upper", func(d string) {
		write(t, filepath.Join(d, "both"), "upper")
		write(t, filepath.Join(d, "opaque/new"), "upper")
		if err := unix.Mknod(filepath.Join(d, "gone"), unix.S_IFCHR, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(filepath.Join(d, "opaque"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			t.Fatal(err)
		}
	})
	targets := make(map[string]string)
	for _, id := range []string{"c1", "c2"} {
		targets[id] = filepath.Join(top, id)
		if err := os.Mkdir(targets[id], 0o700); err != nil {
			t.Fatal(err)
		}
		if err := s.Reserve(id); err != nil {
			t.Fatal(err)
		}
		if err := s.Mount(id, targets[id], []Layer{base, upper, base, upper}); err != nil {
			t.Fatal(err)
		}
		s.Release(id)
	}
	one := targets["c1"]
	if got := read(t, filepath.Join(one, "both")); got != "upper" {
		t.Errorf("both is %q", got)
	}
	for _, name := range []string{"gone", "opaque/old"} {
		if _, err := os.Lstat(filepath.Join(one, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want it hidden", name, err)
		}
	}
	if info, err := os.Stat(one); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the root folder: %v, %v", info.Mode(), err)
	}
	write(t, filepath.Join(one, "both"), "container 1")
	if got := read(t, filepath.Join(targets["c2"], "both")); got != "upper" {
		t.Errorf("the other container sees %q", got)
	}
	if err := unix.Mknod(filepath.Join(one, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Open(filepath.Join(one, "null")); !errors.Is(err, unix.EACCES) {
		t.Errorf("a device node on the root file system can be opened: %v", err)
	}
	held, err := os.Open(filepath.Join(one, "both")) // a process that does not let go
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for id, target := range targets {
		if err := s.Unmount(id); err != nil {
			t.Errorf("Unmount: %v", err)
		}
		if err := s.Unmount(id); err != nil {
			t.Errorf("Unmount again: %v", err)
		}
		if entries, err := os.ReadDir(target); err != nil || len(entries) != 0 {
			t.Errorf("after Unmount %s has %v, %v", target, entries, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(s.root, containersDir)); err != nil || len(left) != 0 {
		t.Errorf("containers left: %v, %v", left, err)
	}
}

func TestManyLayers(t *testing.T) {
	needMounts(t)
	top := scratch(t)
	// The same length as a guest's path, through a short bind: tests' own folders are long.
	short := "/run/cl-store-test"
	if err := os.Mkdir(short, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(short)
	if err := unix.Mount(top, short, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(short, unix.MNT_DETACH) }()
	s, err := Open(Config{Root: filepath.Join(short, "im")})
	if err != nil {
		t.Fatal(err)
	}
	layers := make([]Layer, 127)
	for i := range layers {
		name := strings.Repeat("x", i+1)
		layers[i] = commit(t, s, name, func(d string) { write(t, filepath.Join(d, name), name) })
	}
	target := filepath.Join(top, "root")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Reserve("c"); err != nil {
		t.Fatal(err)
	}
	if err := s.Mount("c", target, layers); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(target); err != nil || len(entries) != len(layers) {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if err := s.Unmount("c"); err != nil {
		t.Error(err)
	}
}

func TestStaging(t *testing.T) {
	s, err := Open(Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.NewStaging()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(st.Dir(), "a/b"), "x")
	if info, err := os.Stat(st.Dir()); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("staging folder: %v, %v", info.Mode(), err)
	}
	gone := st.Dir()
	if err := st.Discard(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Discard: %v", err)
	}
	d := digest.FromString("blob")
	if _, ok := s.Layer(d); ok {
		t.Error("a layer that was never committed is there")
	}
	first := commit(t, s, "blob", func(dir string) { write(t, filepath.Join(dir, "f"), "first") })
	second := commit(t, s, "blob", func(dir string) { write(t, filepath.Join(dir, "f"), "second") })
	if first != second || read(t, filepath.Join(first.link, "f")) != "first" {
		t.Errorf("the second commit of a layer gives %+v, the first gave %+v", second, first)
	}
	for name, l := range map[string]Layer{
		"other diff_id": {Blob: d, DiffID: digest.FromString("x")}, "encrypted": {Blob: d, DiffID: d, Encrypted: true},
	} {
		st, err := s.NewStaging()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Commit(l); err == nil {
			t.Errorf("%s: commit of another layer under the same digest succeeded", name)
		}
		if err := st.Discard(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(s.root, stagingDir)); err != nil || len(left) != 0 {
		t.Errorf("staging has %v, %v", left, err)
	}
}

func TestUnmountFails(t *testing.T) {
	fail := errors.New("busy")
	calls := 0
	s, err := Open(Config{Root: t.TempDir(), Mounts: Mounts{
		Overlay: func(string, []string, string, string) error { return nil },
		Unmount: func(string) error { calls++; return fail },
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Mount("c", "/t", nil); err == nil {
		t.Error("Mount without Reserve succeeded")
	}
	if err := s.Reserve("c"); err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount("c"); !errors.Is(err, ErrMounted) {
		t.Errorf("Unmount while a mount is under way: %v", err)
	}
	if err := s.MountDir("c", "/t", "/pause"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Unmount("c"); !errors.Is(err, fail) {
			t.Errorf("Unmount: %v", err)
		}
	}
	fail = nil
	if err := s.Unmount("c"); err != nil || calls != 3 {
		t.Errorf("Unmount: %v after %d calls", err, calls)
	}
	if err := s.Reserve("c"); err != nil {
		t.Errorf("the id is not free again: %v", err)
	}
	s.Release("c")
	s.Release("c")
}

func TestConcurrentUnmount(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	s, err := Open(Config{Root: t.TempDir(), Mounts: Mounts{
		Overlay: func(string, []string, string, string) error { return nil },
		Unmount: func(string) error { close(inside); <-leave; return nil },
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Reserve("c"), s.MountDir("c", "/t", "/pause")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Unmount("c"); err != nil {
			t.Error(err)
		}
	})
	<-inside
	if err := s.Unmount("c"); !errors.Is(err, ErrMounted) {
		t.Errorf("Unmount during Unmount: %v", err)
	}
	if err := s.Reserve("d"); err != nil {
		t.Errorf("another container has to wait: %v", err)
	}
	close(leave)
	wg.Wait()
}

func TestLowerFolders(t *testing.T) {
	var got []string
	s, err := Open(Config{Root: t.TempDir(), Mounts: Mounts{Overlay: func(_ string, lower []string, _, _ string) error { got = lower; return nil }}})
	if err != nil {
		t.Fatal(err)
	}
	a, b, c := commit(t, s, "a", func(string) {}), commit(t, s, "b", func(string) {}), commit(t, s, "c", func(string) {})
	if err := errors.Join(s.Reserve("c"), s.Mount("c", "/t", []Layer{a, b, a, c, b})); err != nil {
		t.Fatal(err)
	}
	if want := []string{b.link, c.link, a.link}; !slices.Equal(got, want) {
		t.Errorf("lower folders %v, want %v", got, want)
	}
	if err := s.Reserve("d"); err != nil {
		t.Fatal(err)
	}
	if err := s.MountDir("d", "/t", "/a:b"); err == nil {
		t.Error("a folder with a colon was mounted")
	}
}
