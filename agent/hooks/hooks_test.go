// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package hooks

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// tree makes a root folder with a folder of hooks. Its files belong to root, so that the tests need to be.
func tree(t *testing.T) (root, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("hooks belong to root, and only root can make files that do: runs in the test guest")
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(root, "usr", "hooks")
	for _, kind := range []string{"prestart", "poststop"} {
		if err := os.MkdirAll(filepath.Join(dir, kind), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program(t, filepath.Join(dir, "prestart", "b"), 0o755)
	program(t, filepath.Join(dir, "prestart", "a"), 0o755)
	program(t, filepath.Join(dir, "prestart", "README"), 0o644)
	program(t, filepath.Join(dir, "poststop", "c"), 0o500)
	return root, dir
}

func program(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/true\n"), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	root, dir := tree(t)
	if err := os.Symlink("a", filepath.Join(dir, "prestart", "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "prestart", "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	hook := func(kind, name string) specs.Hook {
		return specs.Hook{Path: filepath.Join(dir, kind, name), Args: []string{name, kind}, Timeout: new(timeout)}
	}
	want := &specs.Hooks{
		Prestart: []specs.Hook{hook("prestart", "a"), hook("prestart", "b")}, //nolint:staticcheck // SA1019: deprecated, but what Kata's folder means
		Poststop: []specs.Hook{hook("poststop", "c")},
	}
	// An absolute link, and dots, lead no further than to root.
	for _, path := range []string{"/usr/hooks", "usr/hooks/", "/link/hooks", "/../../usr/hooks"} {
		got, err := Find(root, path)
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("%s: %v\n%s", path, err, cmp.Diff(want, got))
		}
	}
}

func TestFindNothing(t *testing.T) {
	root, _ := tree(t)
	empty := filepath.Join(root, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Find(root, "empty"); err != nil || got != nil {
		t.Errorf("an empty folder: %v, %v", got, err)
	}
	if err := os.Mkdir(filepath.Join(empty, "prestart"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Find(root, "empty"); err != nil || got != nil {
		t.Errorf("an empty folder of prestart hooks: %v, %v", got, err)
	}
}

// Threat: the host names a folder that it, or a container, can write to, and has its own program run as root.
func TestFindRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"no folder":            {os.RemoveAll, "no such file"},
		"writable folder":      {func(dir string) error { return os.Chmod(dir, 0o777) }, "changed by others"},
		"folder of a group":    {func(dir string) error { return os.Chmod(filepath.Join(dir, "prestart"), 0o775) }, "changed by others"},
		"writable program":     {func(dir string) error { return os.Chmod(filepath.Join(dir, "prestart", "a"), 0o757) }, "changed by others"},
		"program of a user":    {func(dir string) error { return os.Chown(filepath.Join(dir, "prestart", "a"), 1000, 0) }, "owner 1000"},
		"folder of a user":     {func(dir string) error { return os.Chown(dir, 1000, 0) }, "owner 1000"},
		"link for a folder":    {func(dir string) error { return os.Symlink("prestart", filepath.Join(dir, "poststart")) }, "symbolic links"},
		"file for a folder":    {func(dir string) error { return os.WriteFile(filepath.Join(dir, "poststart"), nil, 0o600) }, "not a directory"},
		"another file system":  {func(dir string) error { return mountOver(dir) }, "another file system"},
		"prestart on another":  {func(dir string) error { return mountOver(filepath.Join(dir, "prestart")) }, "another file system"},
		"more than enough":     {many, "more than 64"},
		"link out of the root": {func(dir string) error { return linkOut(dir) }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			root, dir := tree(t)
			t.Cleanup(func() {
				for _, mounted := range []string{dir, filepath.Join(dir, "prestart")} {
					_ = unix.Unmount(mounted, unix.MNT_DETACH) // most are none
				}
			})
			if _, err := Find(root, "/usr/hooks"); err != nil {
				t.Fatalf("the folder is refused as it is: %v", err)
			}
			if err := test.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if got, err := Find(root, "/usr/hooks"); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, error %v, want one with %q", got, err, test.want)
			}
		})
	}
	if _, err := Find(filepath.Join(t.TempDir(), "none"), "/"); err == nil {
		t.Error("a root that does not exist is taken")
	}
}

func mountOver(dir string) error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755") }

func many(dir string) error {
	for i := range maxHooks + 1 {
		if err := os.WriteFile(filepath.Join(dir, "prestart", fmt.Sprint(i)), nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// linkOut puts a link to a folder outside of the root in place of the hooks.
func linkOut(dir string) error {
	outside := dir + "-outside"
	if err := os.Rename(dir, outside); err != nil {
		return err
	}
	return os.Symlink(outside, dir) // absolute: within the root there is no such folder
}
