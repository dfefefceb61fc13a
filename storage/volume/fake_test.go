// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package volume

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fake records what would be mounted, by the path that a target leads to, and fails where it is told.
type fake struct {
	t     *testing.T
	dir   string
	fail  map[string]error // by call
	block map[string]chan struct{}

	mu    sync.Mutex
	calls []string
}

func (f *fake) do(call string) error {
	f.mu.Lock()
	f.calls = append(f.calls, call)
	err, block := f.fail[call], f.block[call]
	f.mu.Unlock()
	if block != nil {
		<-block
	}
	return err
}

// path returns the path below the run folder that a target leads to.
func (f *fake) path(target string) string {
	f.t.Helper()
	if !strings.HasPrefix(target, "/proc/self/fd/") {
		f.t.Errorf("target %s is not given by descriptor", target)
	}
	real, err := filepath.EvalSymlinks(target)
	if err != nil {
		f.t.Error(err)
	}
	rel, err := filepath.Rel(f.dir, real)
	if err != nil || strings.HasPrefix(rel, "..") {
		f.t.Errorf("target %s is %s (%v)", target, real, err)
	}
	return rel
}

func (f *fake) mount(source, target, fstype string, options []string) error {
	return f.do(fmt.Sprintf("mount %s %s %s %s", source, f.path(target), fstype, strings.Join(options, ",")))
}

func (f *fake) unmount(target string) error {
	if strings.Count(target, "/") != 5 { // /proc/self/fd/N/NAME
		f.t.Errorf("target %s ends in a link, which would not be followed", target)
	}
	return f.do("unmount " + f.path(target))
}

// take returns the calls since it was last called.
func (f *fake) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

func newFake(t *testing.T) (*Manager, *fake, string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "run")
	f := &fake{t: t, dir: dir, fail: map[string]error{}, block: map[string]chan struct{}{}}
	m, err := New(Config{RunDir: dir, SysDir: t.TempDir(), Mount: f.mount, Unmount: f.unmount})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.fail = nil
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if left := m.mountPoints(); left != nil {
			t.Errorf("left: %v", left)
		}
	})
	return m, f, dir
}

func expect(t *testing.T, f *fake, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, f.take()); diff != "" {
		t.Errorf("calls differ (-want +got):\n%s", diff)
	}
}

func exists(t *testing.T, name string, want bool) {
	t.Helper()
	if _, err := os.Lstat(name); (err == nil) != want {
		t.Errorf("%s: %v", name, err)
	}
}

// gid is a group that this process may give files to.
func gid() uint32 {
	if os.Geteuid() == 0 {
		return 4711
	}
	return uint32(os.Getgid())
}

func modeOf(t *testing.T, name string) (mode, group uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Mode & 0o7777, st.Gid
}

// has tells whether a volume is at a path.
func (m *Manager) has(mountPoint string) bool { return slices.Contains(m.mountPoints(), mountPoint) }

// mountPoints lists where the volumes are, sorted.
func (m *Manager) mountPoints() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for rel, v := range m.volumes {
		if v.ready {
			all = append(all, path.Join(m.config.RunDir, rel))
		}
	}
	slices.Sort(all)
	return all
}
