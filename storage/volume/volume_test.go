// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestShim adds what Kata's Go shim sends.
func TestShim(t *testing.T) {
	m, f, dir := newFake(t)
	ctx := t.Context()
	fsgid := fmt.Sprintf("fsgid=%d", gid())
	local := dir + "/shared/containers/sandbox-1/rootfs/local/cache"
	for _, s := range []Storage{
		{Driver: "ephemeral", FSType: "tmpfs", MountPoint: dir + "/sandbox/shm", Options: []string{"noexec", "nosuid", "nodev", "mode=1777", "size=67108864"}},
		{Driver: "ephemeral", FSType: "tmpfs", MountPoint: dir + "/sandbox/ephemeral/mem"},
		{Driver: "ephemeral", FSType: "tmpfs", MountPoint: dir + "/sandbox/ephemeral/grp", Options: []string{fsgid}},
		{Driver: "local", FSType: "local", MountPoint: local, Options: []string{"mode=0777", fsgid}},
		{Driver: "local", FSType: "local", MountPoint: dir + "/shared/containers/sandbox-1/local/x", Options: []string{"mode=0777"}},
	} {
		if err := m.Add(ctx, "c", s); err != nil {
			t.Fatal(err)
		}
		if !m.has(s.MountPoint) || m.has(s.MountPoint+"/x") {
			t.Errorf("has %s: %t", s.MountPoint, m.has(s.MountPoint))
		}
	}
	expect(
		t, f, "mount tmpfs sandbox/shm tmpfs noexec,nosuid,nodev,mode=1777,size=67108864",
		"mount tmpfs sandbox/ephemeral/mem tmpfs ", "mount tmpfs sandbox/ephemeral/grp tmpfs ",
	)
	if mode, g := modeOf(t, dir+"/sandbox/ephemeral/grp"); mode != 0o2755 || g != gid() {
		t.Errorf("fsgid of an ephemeral volume: mode %o, group %d", mode, g)
	}
	if mode, g := modeOf(t, local); mode != 0o2777 || g != gid() {
		t.Errorf("local volume: mode %o, group %d", mode, g)
	}
	update := Storage{Driver: "ephemeral", FSType: "tmpfs", MountPoint: dir + "/sandbox/ephemeral/grp", Options: []string{"remount", "size=2048M", fsgid}}
	if err := m.Update(ctx, update); err != nil {
		t.Error(err)
	}
	expect(t, f, "mount tmpfs sandbox/ephemeral/grp tmpfs remount,size=2048M")
	if err := os.WriteFile(local+"/data", []byte("stays"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The container is restarted: its volumes stay, and are not mounted again.
	if err := m.Release(ctx, "c"); err != nil {
		t.Error(err)
	}
	if err := m.Add(ctx, "c2", Storage{Driver: "local", MountPoint: local, Options: []string{"mode=0700"}}); err != nil {
		t.Error(err)
	}
	exists(t, local+"/data", true)
	if mode, _ := modeOf(t, local); mode != 0o2777 {
		t.Errorf("the second container changed the mode to %o", mode)
	}
	expect(t, f)
	if err := m.Close(ctx); err != nil {
		t.Error(err)
	}
	calls := f.take()
	slices.Sort(calls)
	if diff := cmp.Diff([]string{"unmount sandbox/ephemeral/grp", "unmount sandbox/ephemeral/mem", "unmount sandbox/shm"}, calls); diff != "" {
		t.Errorf("calls differ (-want +got):\n%s", diff)
	}
	exists(t, local, false)
	exists(t, dir+"/sandbox/shm", false)
	if err := m.Add(ctx, "late", shm(dir)); err == nil {
		t.Error("a volume was added after Close")
	}
}

func shm(dir string) Storage {
	return Storage{Driver: DriverEphemeral, FSType: "tmpfs", MountPoint: dir + "/sandbox/shm", Options: []string{"nosuid", "size=1m"}}
}

func TestUsers(t *testing.T) {
	m, f, dir := newFake(t)
	ctx := t.Context()
	s := shm(dir)
	s.Transient = true
	mounted := "mount tmpfs sandbox/shm tmpfs nosuid,size=1m"
	step := func(err error, has bool, calls ...string) {
		t.Helper()
		if err != nil || m.has(s.MountPoint) != has {
			t.Errorf("%v, has %t", err, m.has(s.MountPoint))
		}
		expect(t, f, calls...)
	}
	step(m.Release(ctx, "nobody"), false)
	step(m.Add(ctx, "a", s), true, mounted)
	step(m.Add(ctx, "a", s), true) // twice counts once
	step(m.Add(ctx, "b", s), true)
	step(m.Release(ctx, "a"), true)
	step(m.Release(ctx, "a"), true)
	step(m.Release(ctx, "b"), false, "unmount sandbox/shm")
	exists(t, s.MountPoint, false)
	step(m.Add(ctx, "a", s), true, mounted)
	f.fail["unmount sandbox/shm"] = unix.EBUSY
	if err := m.Release(ctx, "a"); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), s.MountPoint) {
		t.Errorf("release: %v", err)
	}
	step(nil, false, "unmount sandbox/shm") // no one may bind what is half gone
	if err := m.Add(ctx, "b", s); !errors.Is(err, unix.EBUSY) {
		t.Errorf("add what cannot be ended: %v", err)
	}
	if err := m.Update(ctx, shm(dir)); err == nil {
		t.Error("a volume that is half gone was updated")
	}
	f.take()
	delete(f.fail, "unmount sandbox/shm")
	step(m.Add(ctx, "b", s), true, "unmount sandbox/shm", mounted)
	step(m.Release(ctx, "b"), true) // a is its user still, for it has not been released
	step(m.Release(ctx, "a"), false, "unmount sandbox/shm")
	// One that wants it to stay decides.
	step(m.Add(ctx, "a", s), true, mounted)
	step(m.Add(ctx, "b", shm(dir)), true)
	step(m.Add(ctx, "c", s), true)
	step(errors.Join(m.Release(ctx, "a"), m.Release(ctx, "b"), m.Release(ctx, "c")), true)
	other := s
	other.FSType, other.Options = "hugetlbfs", []string{"pagesize=2097152,size=2097152"}
	if err := m.Add(ctx, "a", other); !errors.Is(err, ErrInvalid) {
		t.Errorf("another file system at the same place: %v", err)
	}
}

func TestAddFails(t *testing.T) {
	m, f, dir := newFake(t)
	ctx := t.Context()
	s := shm(dir)
	f.fail["mount tmpfs sandbox/shm tmpfs nosuid,size=1m"] = unix.ENOMEM
	if err := m.Add(ctx, "a", s); !errors.Is(err, unix.ENOMEM) || !strings.Contains(err.Error(), s.MountPoint) {
		t.Errorf("add: %v", err)
	}
	expect(t, f, "mount tmpfs sandbox/shm tmpfs nosuid,size=1m")
	exists(t, s.MountPoint, false)
	if err := os.Mkdir(s.MountPoint, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Add(ctx, "a", s); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("add: %v", err)
	}
	f.take()
	exists(t, s.MountPoint, true) // it was there before
	clear(f.fail)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	s.Group = &FSGroup{ID: gid()}
	if err := os.MkdirAll(s.MountPoint+"/entry", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Add(canceled, "a", s); !errors.Is(err, context.Canceled) {
		t.Errorf("add: %v", err)
	}
	expect(t, f, "mount tmpfs sandbox/shm tmpfs nosuid,size=1m", "unmount sandbox/shm")
	exists(t, s.MountPoint+"/entry", true) // it was there before
	if err := os.Remove(s.MountPoint + "/entry"); err != nil {
		t.Fatal(err)
	}
	if m.has(s.MountPoint) || len(m.volumes) != 0 {
		t.Error("what failed is there")
	}
}

// TestLinks: a link on the way, or where the volume goes, is not followed, wherever it leads.
func TestLinks(t *testing.T) {
	for name, at := range map[string]string{
		"last": "sandbox/shm", "parent": "sandbox", "local": "shared/containers/cc/rootfs/local/v", "id": "shared/containers/cc",
	} {
		t.Run(name, func(t *testing.T) {
			m, f, dir := newFake(t)
			outside := t.TempDir()
			link := filepath.Join(dir, at)
			if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(outside, link)); err != nil {
				t.Fatal(err)
			}
			s := shm(dir)
			if strings.HasPrefix(at, "shared") {
				s = Storage{Driver: DriverLocal, MountPoint: dir + "/shared/containers/cc/rootfs/local/v", Options: []string{"mode=0777"}}
			}
			if err := m.Add(t.Context(), "a", s); !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
				t.Errorf("add: %v", err)
			}
			expect(t, f)
			if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
				t.Errorf("outside: %v, %v", entries, err)
			}
		})
	}
}

func TestUpdate(t *testing.T) {
	m, f, dir := newFake(t)
	ctx := t.Context()
	if err := m.Add(ctx, "a", shm(dir)); err != nil {
		t.Fatal(err)
	}
	huge := Storage{Driver: DriverLocal, MountPoint: dir + "/shared/containers/c0/local/v"}
	if err := m.Add(ctx, "a", huge); err != nil {
		t.Fatal(err)
	}
	f.take()
	with := func(change func(*Storage)) Storage {
		s := shm(dir)
		change(&s)
		return s
	}
	for name, tc := range map[string]struct {
		s    Storage
		want error
	}{
		"local":     {huge, ErrUnsupported},
		"other":     {with(func(s *Storage) { s.Driver = "blk" }), ErrUnsupported},
		"hugetlbfs": {with(func(s *Storage) { s.FSType = "hugetlbfs" }), ErrInvalid},
		"unknown":   {with(func(s *Storage) { s.MountPoint = dir + "/sandbox/ephemeral/x" }), ErrInvalid},
		"place":     {with(func(s *Storage) { s.MountPoint = huge.MountPoint }), ErrInvalid},
		"option":    {with(func(s *Storage) { s.Options = []string{"bind"} }), ErrInvalid},
	} {
		if err := m.Update(ctx, tc.s); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	expect(t, f)
	for _, options := range [][]string{nil, {"remount"}, {"remount", "fsgid=7"}} {
		if err := m.Update(ctx, with(func(s *Storage) { s.Options = options })); err != nil {
			t.Error(err)
		}
		expect(t, f)
	}
	for _, step := range []struct{ option, want string }{
		{"ro", "remount,nosuid,ro"}, {"size=5m", "remount,nosuid,ro,size=5m"}, {"suid", "remount,nosuid,ro,suid"}, {"suid", "remount,nosuid,ro,suid,suid"},
	} {
		if err := m.Update(ctx, with(func(s *Storage) { s.Options = []string{"remount", step.option} })); err != nil {
			t.Error(err)
		}
		expect(t, f, "mount tmpfs sandbox/shm tmpfs "+step.want)
	}
	f.fail["mount tmpfs sandbox/shm tmpfs remount,nosuid,ro,suid,size=1"] = unix.EINVAL
	if err := m.Update(ctx, with(func(s *Storage) { s.Options = []string{"size=1"} })); !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
}

// TestBlocked: a mount that hangs delays no other volume, and those who wait for it may give up.
func TestBlocked(t *testing.T) {
	m, f, dir := newFake(t)
	s := shm(dir)
	block := make(chan struct{})
	f.block["mount tmpfs sandbox/shm tmpfs nosuid,size=1m"] = block
	done := make(chan error, 1)
	go func() { done <- m.Add(t.Context(), "a", s) }()
	other := Storage{Driver: DriverEphemeral, FSType: "tmpfs", MountPoint: dir + "/sandbox/ephemeral/x", Transient: true}
	if err := errors.Join(m.Add(t.Context(), "b", other), m.Release(t.Context(), "b")); err != nil {
		t.Error(err)
	}
	for !slices.Contains(func() []string { f.mu.Lock(); defer f.mu.Unlock(); return slices.Clone(f.calls) }(), "mount tmpfs sandbox/shm tmpfs nosuid,size=1m") {
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
		runtime.Gosched()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Add(ctx, "c", s); !errors.Is(err, context.Canceled) {
		t.Errorf("add: %v", err)
	}
	if m.has(s.MountPoint) {
		t.Error("a volume shows before it is mounted")
	}
	close(block)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConcurrent(t *testing.T) {
	m, _, dir := newFake(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			owner := fmt.Sprint(i)
			for n := range 50 {
				s := Storage{Driver: DriverEphemeral, FSType: "tmpfs", MountPoint: fmt.Sprintf("%s/sandbox/ephemeral/%d", dir, n%3), Transient: true}
				if err := m.Add(t.Context(), owner, s); err != nil {
					t.Error(err)
				}
				if !m.has(s.MountPoint) {
					t.Error("a volume went while it was used")
				}
				if err := m.Release(t.Context(), owner); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(m.volumes) != 0 {
		t.Errorf("left: %v", m.mountPoints())
	}
}

func TestMany(t *testing.T) {
	m, _, dir := newFake(t)
	for i := range maxVolumes {
		if err := m.Add(t.Context(), "a", Storage{Driver: DriverLocal, MountPoint: fmt.Sprintf("%s/shared/containers/c1/local/%d", dir, i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Add(t.Context(), "a", shm(dir)); err == nil {
		t.Error("more volumes than may be")
	}
}

func TestNew(t *testing.T) {
	for _, dir := range []string{"", "/", "x", "/x/", "/x/../y"} {
		if _, err := New(Config{RunDir: dir}); err == nil {
			t.Errorf("run folder %q", dir)
		}
	}
}
