// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// volumeTree makes a volume with one of each kind of file, and a secret outside that a link points to.
func volumeTree(t *testing.T) (root, secret string) {
	t.Helper()
	root, secret = filepath.Join(t.TempDir(), "volume"), filepath.Join(t.TempDir(), "secret")
	err := errors.Join(
		os.WriteFile(secret, nil, 0o600),
		os.MkdirAll(root+"/dir/sub", 0o700), os.WriteFile(root+"/file", nil, 0o600), os.WriteFile(root+"/dir/sub/exec", nil, 0o755),
		os.Symlink(secret, root+"/link"), os.Symlink(filepath.Dir(secret), root+"/dir/link"), unix.Mkfifo(root+"/fifo", 0o600),
		unix.Chmod(root, 0o700), unix.Chmod(root+"/dir/sub/exec", 0o4755),
	)
	if err != nil {
		t.Fatal(err)
	}
	return root, secret
}

func change(ctx context.Context, t *testing.T, root string, g FSGroup, readOnly bool) error {
	t.Helper()
	f, err := openRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return giveToGroup(ctx, f, g, readOnly)
}

func TestChangeGroup(t *testing.T) {
	for name, tc := range map[string]struct {
		readOnly bool
		want     map[string]uint32
	}{
		"rw": {false, map[string]uint32{"": 0o2770, "dir": 0o2770, "dir/sub": 0o2770, "file": 0o660, "dir/sub/exec": 0o775, "fifo": 0o660}},
		"ro": {true, map[string]uint32{"": 0o2750, "dir": 0o2750, "dir/sub": 0o2750, "file": 0o640, "dir/sub/exec": 0o755, "fifo": 0o640}},
	} {
		root, secret := volumeTree(t)
		var before unix.Stat_t
		if err := unix.Stat(secret, &before); err != nil {
			t.Fatal(err)
		}
		if err := change(t.Context(), t, root, FSGroup{ID: gid()}, tc.readOnly); err != nil {
			t.Fatal(err)
		}
		for file, want := range tc.want {
			mode, g := modeOf(t, filepath.Join(root, file))
			if os.Geteuid() != 0 && file == "dir/sub/exec" {
				mode &^= unix.S_ISUID // the owner's chown to the same group may leave it
			}
			if mode != want || g != gid() {
				t.Errorf("%s: %q has mode %o, group %d, want %o, %d", name, file, mode, g, want, gid())
			}
		}
		if _, g := modeOf(t, root+"/link"); os.Geteuid() == 0 && g == gid() {
			t.Errorf("%s: a link was changed", name)
		}
		var after unix.Stat_t
		if err := unix.Stat(secret, &after); err != nil || after.Ctim != before.Ctim {
			t.Errorf("%s: the target of a link was changed (%v)", name, err)
		}
	}
}

func TestOnRootMismatch(t *testing.T) {
	for name, tc := range map[string]struct {
		mode    uint32
		changes bool
	}{
		"fits": {0o2770, false}, "more": {0o3777, false}, "no setgid": {0o770, true}, "no write": {0o2750, true}, "no exec": {0o2760, true},
	} {
		for _, policy := range []bool{true, false} {
			root, _ := volumeTree(t)
			if err := errors.Join(os.Chown(root, -1, int(gid())), unix.Chmod(root, tc.mode)); err != nil {
				t.Fatal(err)
			}
			if err := change(t.Context(), t, root, FSGroup{ID: gid(), OnRootMismatch: policy}, false); err != nil {
				t.Fatal(err)
			}
			mode, _ := modeOf(t, root+"/file")
			if changed := mode == 0o660; changed != (tc.changes || !policy) {
				t.Errorf("%s, only on mismatch %t: changed %t", name, policy, changed)
			}
		}
	}
	if os.Geteuid() == 0 {
		root, _ := volumeTree(t)
		if err := unix.Chmod(root, 0o2770); err != nil {
			t.Fatal(err)
		}
		if err := change(t.Context(), t, root, FSGroup{ID: gid(), OnRootMismatch: true}, false); err != nil {
			t.Fatal(err)
		}
		if _, g := modeOf(t, root+"/file"); g != gid() {
			t.Errorf("another group's volume was left alone")
		}
	}
}

// TestInterrupted: one that ends early leaves a root that the next one does not take for done.
func TestInterrupted(t *testing.T) {
	root, _ := volumeTree(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := change(ctx, t, root, FSGroup{ID: gid()}, false); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if mode, _ := modeOf(t, root); mode != 0o700 {
		t.Errorf("root has mode %o", mode)
	}
}

func TestDepth(t *testing.T) {
	root := t.TempDir()
	for _, tc := range []struct {
		depth int
		ok    bool
	}{{maxGroupDepth - 1, true}, {maxGroupDepth, false}} {
		if err := os.MkdirAll(root+strings.Repeat("/d", tc.depth), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := change(t.Context(), t, root, FSGroup{ID: gid()}, false); (err == nil) != tc.ok {
			t.Errorf("%d deep: %v", tc.depth, err)
		}
	}
}

func TestWideFolder(t *testing.T) {
	root := t.TempDir()
	for i := range 600 { // more than one reading
		if err := os.WriteFile(fmt.Sprintf("%s/%d", root, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := change(t.Context(), t, root, FSGroup{ID: gid()}, false); err != nil {
		t.Fatal(err)
	}
	for i := range 600 {
		if mode, _ := modeOf(t, fmt.Sprintf("%s/%d", root, i)); mode != 0o660 {
			t.Fatalf("file %d has mode %o", i, mode)
		}
	}
}
