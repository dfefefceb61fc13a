// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package store

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
)

// disk is a file system of which layers take their size.
type disk struct {
	store *Store
	total int64
	files int64
}

func (d *disk) statfs(string) (Space, error) {
	sp := Space{Total: d.total, Free: d.total, Files: d.files, FreeFiles: d.files}
	if d.store != nil {
		sp.Free -= d.store.Size()
	}
	return sp, nil
}

func openDisk(t *testing.T, total, budget int64) (*Store, *disk) {
	t.Helper()
	d := &disk{total: total}
	s, err := Open(Config{
		Root: t.TempDir(), Budget: budget, Reserve: 10, Statfs: d.statfs,
		Mounts: Mounts{Overlay: func(string, []string, string, string) error { return nil }, Unmount: func(string) error { return nil }},
	})
	if err != nil {
		t.Fatal(err)
	}
	d.store = s
	return s, d
}

func add(t *testing.T, s *Store, name string, size int64) Layer {
	t.Helper()
	st, err := s.NewStaging()
	if err != nil {
		t.Fatal(err)
	}
	l, err := st.Commit(Layer{Blob: digest.FromString(name), DiffID: digest.FromString(name), Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// names returns which of the layers are there, and checks that the disk says the same.
func names(t *testing.T, s *Store, of ...string) []string {
	t.Helper()
	var have []string
	for _, name := range of {
		_, ok := s.Layer(digest.FromString(name))
		if ok {
			have = append(have, name)
		}
		if _, err := os.Stat(s.path(digest.FromString(name))); (err == nil) != ok {
			t.Errorf("layer %s is in the store: %t; on the disk: %v", name, ok, err)
		}
	}
	for _, dir := range []string{linksDir, filepath.Join(layersDir, "sha256")} {
		if found, err := os.ReadDir(filepath.Join(s.root, dir)); err != nil || len(found) != len(have) {
			t.Errorf("%s has %d entries, %v; want %d", dir, len(found), err, len(have))
		}
	}
	return have
}

func use(t *testing.T, s *Store, id string, layers ...Layer) {
	t.Helper()
	if err := errors.Join(s.Reserve(id), s.Mount(id, "/"+id, layers)); err != nil {
		t.Fatal(err)
	}
}

func TestEnsure(t *testing.T) {
	s, d := openDisk(t, 1000, 0)
	a, b, c := add(t, s, "a", 200), add(t, s, "b", 200), add(t, s, "c", 200)
	use(t, s, "c1", a)
	use(t, s, "c2", b, c)
	if err := s.Ensure(390); err != nil {
		t.Errorf("there is space: %v", err)
	}
	err := s.Ensure(391)
	var full *SpaceError
	if !errors.As(err, &full) || !errors.Is(err, syscall.ENOSPC) || full.Need != 391 || full.Space.Free != 400 {
		t.Errorf("every layer is in use: %v", err)
	}
	if err := s.Unmount("c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount("c2"); err != nil {
		t.Fatal(err)
	}
	use(t, s, "c3", a) // used last
	if err := s.Unmount("c3"); err != nil {
		t.Fatal(err)
	}
	h := s.NewHold()
	for range 2 {
		if !h.Add(b) {
			t.Fatal("a layer that is there cannot be held")
		}
	}
	if err := s.Ensure(500); err != nil {
		t.Error(err)
	}
	if got := names(t, s, "a", "b", "c"); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("left: %q: the one that was used longest ago and is not held was to go", got)
	}
	if h.Add(c) {
		t.Error("a layer that is gone is held")
	}
	if err := s.Reserve("c4"); err != nil {
		t.Fatal(err)
	}
	if err := s.Mount("c4", "/c4", []Layer{a, c}); !errors.Is(err, ErrGone) {
		t.Errorf("Mount of a layer that is gone: %v", err)
	}
	s.Release("c4")
	h.Release()
	h.Release()
	if err := s.Ensure(990); err != nil || len(names(t, s, "a", "b")) != 0 {
		t.Errorf("all of it: %v", err)
	}
	for _, e := range []error{s.Ensure(991), s.Full(errors.New("write failed"))} {
		if !errors.Is(e, syscall.ENOSPC) || !strings.Contains(e.Error(), "give the guest more memory or a larger scratch disk") {
			t.Errorf("error %v", e)
		}
	}
	if c2 := add(t, s, "c", 200); c2 == c || !s.NewHold().Add(c2) || s.NewHold().Add(c) {
		t.Error("a layer that was pulled again is the old one")
	}
	d.total = 0
	if err := s.Ensure(1 << 60); err != nil {
		t.Errorf("a file system that does not know its size: %v", err)
	}
}

func TestBudget(t *testing.T) {
	s, _ := openDisk(t, 1<<30, 500)
	a := add(t, s, "a", 200)
	add(t, s, "b", 200)
	use(t, s, "c1", a)
	add(t, s, "c", 200)
	if got := names(t, s, "a", "b", "c"); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("left: %q", got)
	}
	add(t, s, "d", 600) // more than the budget alone: it stays until something newer comes
	if got := names(t, s, "a", "b", "c", "d"); !slices.Equal(got, []string{"a", "d"}) {
		t.Errorf("left: %q", got)
	}
	if err := s.Unmount("c1"); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s, "a", "b", "c", "d"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("left: %q", got)
	}
}

func TestOutOfFiles(t *testing.T) {
	s, d := openDisk(t, 1000, 0)
	d.files = 77
	s.statfs = func(dir string) (Space, error) {
		sp, err := d.statfs(dir)
		sp.FreeFiles = 0
		return sp, err
	}
	if err := s.Ensure(1); err == nil || !strings.Contains(err.Error(), "no room for more files: all 77") {
		t.Errorf("error %v", err)
	}
}
