// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestHierarchy(t *testing.T) {
	h := Hierarchy{Root: "testdata/full"}
	controllers, err := h.Controllers()
	if err != nil || !slices.Equal(controllers, []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"}) {
		t.Errorf("controllers %v, %v", controllers, err)
	}
	if v2, err := h.IsV2(); err != nil || v2 {
		t.Errorf("a plain folder is of version 2: %v, %v", v2, err)
	}
	if _, err := (Hierarchy{Root: "testdata/missing"}).IsV2(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing root: %v", err)
	}
	if _, err := (Hierarchy{Root: "testdata/missing"}).Controllers(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing root: %v", err)
	}
	pids, err := h.Procs("/kata/c1")
	if err != nil || !slices.Equal(pids, []int{7, 9, 12}) {
		t.Errorf("processes %v, %v", pids, err)
	}
	for path, want := range map[string]bool{"testdata/full:/kata/c1": false, "testdata/bare:/c1": true} {
		root, path, _ := strings.Cut(path, ":")
		if frozen, err := (Hierarchy{Root: root}).Frozen(path); err != nil || frozen != want {
			t.Errorf("%s%s is frozen: %v, %v", root, path, frozen, err)
		}
	}
}

// operations are all operations on a group by its path.
func operations(t *testing.T, h Hierarchy) map[string]func(path string) error {
	t.Helper()
	w := newWatcher(t, h)
	return map[string]func(path string) error{
		"Stats":   func(path string) error { _, err := h.Stats(path); return err },
		"Procs":   func(path string) error { _, err := h.Procs(path); return err },
		"Frozen":  func(path string) error { _, err := h.Frozen(path); return err },
		"Freeze":  func(path string) error { return h.Freeze(t.Context(), path) },
		"Thaw":    func(path string) error { return h.Thaw(t.Context(), path) },
		"Kill":    h.Kill,
		"Remove":  func(path string) error { return h.Remove(t.Context(), path) },
		"Watcher": func(path string) error { return w.Add(path, func() {}) },
	}
}

// TestPathsStayInside gives each operation paths and links that lead out of the hierarchy, where a good group lies.
func TestPathsStayInside(t *testing.T) {
	base := t.TempDir()
	root := filepath.Join(base, "root")
	outside := filepath.Join(base, "outside")
	for _, dir := range []string{root, outside} {
		if err := os.CopyFS(dir, os.DirFS("testdata/bare/c1")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink(outside, filepath.Join(root, "absolute")), os.Symlink("../outside", filepath.Join(root, "relative"))); err != nil {
		t.Fatal(err)
	}
	paths := []string{
		"", "/", "//", "/.", ".", "..", "/..", "/../outside", "/a/../../outside", "outside", "/./a", "/a/", "//a", "/a\x00b", "/\xff",
		"/" + strings.Repeat("a/", 4096) + "a", "/absolute", "/relative",
	}
	for name, operation := range operations(t, Hierarchy{Root: root}) {
		for _, path := range paths {
			if err := operation(path); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s of %.40q: %v", name, path, err)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "cgroup.events")); err != nil {
		t.Error(err)
	}
}

func TestMissingGroup(t *testing.T) {
	for name, operation := range operations(t, Hierarchy{Root: t.TempDir()}) {
		err := operation("/kata/c1")
		switch name {
		case "Kill", "Signal", "Remove": // have reached their aim
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		default:
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v, want fs.ErrNotExist", name, err)
			}
		}
	}
}

// TestFreezeEnds freezes a group that never comes to be frozen. Freeze must end with its context and undo what it did,
// but leave alone what was frozen before.
func TestFreezeEnds(t *testing.T) {
	for _, before := range []string{"0\n", "1\n"} {
		root := t.TempDir()
		if err := os.CopyFS(root, os.DirFS("testdata/full")); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(root, "kata/c1/cgroup.freeze")
		write(t, file, before)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := (Hierarchy{Root: root}).Freeze(ctx, "/kata/c1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("freeze: %v", err)
		}
		if after, err := os.ReadFile(file); err != nil || string(after) != before {
			t.Errorf("cgroup.freeze is %q (%v) and was %q", after, err, before)
		}
	}
}

func TestMalformedState(t *testing.T) {
	for _, content := range []string{"", "frozen\n", "frozen -1\n", "populated 1\n", strings.Repeat("a", maxFile+1)} {
		root := t.TempDir()
		if err := os.CopyFS(root, os.DirFS("testdata/full")); err != nil {
			t.Fatal(err)
		}
		h := Hierarchy{Root: root}
		write(t, filepath.Join(root, "kata/c1/cgroup.events"), content)
		if _, err := h.Frozen("/kata/c1"); err == nil || !strings.Contains(err.Error(), "cgroup.events") {
			t.Errorf("%.20q: frozen: %v", content, err)
		}
		if err := h.Freeze(t.Context(), "/kata/c1"); err == nil || !strings.Contains(err.Error(), "cgroup.events") {
			t.Errorf("%.20q: freeze: %v", content, err)
		}
		write(t, filepath.Join(root, "kata/c1/sub/cgroup.procs"), "1\n"+content+"-2\n")
		if pids, err := h.Procs("/kata/c1"); err == nil || !strings.Contains(err.Error(), "cgroup.procs") {
			t.Errorf("processes %v, %v", pids, err)
		}
	}
}
