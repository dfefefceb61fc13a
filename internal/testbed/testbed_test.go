// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package testbed

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cloister-cc/cloister/initramfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir, initramfs.ArchS390x); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "cloister setup --arch s390x") {
		t.Errorf("empty cache: %v", err)
	}
	if _, err := Load(dir, "riscv64"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown architecture: %v", err)
	}
	for name, text := range map[string]string{"damaged": "{", "paths that are gone": `{"arch":"s390x","kernel":"/does/not/exist"}`, "no paths": `{"arch":"s390x"}`} {
		if err := os.WriteFile(bedPath(dir, initramfs.ArchS390x), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := Load(dir, initramfs.ArchS390x); err == nil {
			t.Errorf("%s: loaded %+v", name, b)
		}
	}
}

func TestSaveAndLoad(t *testing.T) {
	dir := t.TempDir()
	b := Bed{
		Arch: initramfs.ArchAMD64, QEMUDir: dir, VsockBackend: dir, Kernel: dir, KernelVersion: "6", ModulesDir: dir, Crun: dir, Pause: dir,
		Busybox: dir, Registry: dir,
	}
	if err := b.save(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(dir, initramfs.ArchAMD64); err != nil || !reflect.DeepEqual(*got, b) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	unlock, err := lock(t.Context(), dir, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, dir, func(string) { told++ }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock: %v", err)
	}
	if told != 1 {
		t.Errorf("told %d times that it waits", told)
	}
	unlock()
	unlock, err = lock(t.Context(), dir, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestBuildAppearsWhenComplete(t *testing.T) {
	s := &setup{cache: t.TempDir(), arch: initramfs.ArchS390x, progress: func(string) {}}
	wrong := errors.New("wrong")
	if _, err := s.build("thing", "1:2~3", newCacheKey("r"), func(string) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("error %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(s.cache, "thing", "*")); err != nil || len(left) > 0 {
		t.Errorf("a failed build left %q, %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(s.cache, "thing", ".*")); err != nil || len(left) > 0 {
		t.Errorf("a failed build left %q, %v", left, err)
	}
	runs := 0
	fill := func(dir string) error { runs++; return os.WriteFile(filepath.Join(dir, "f"), nil, 0o600) }
	var dirs []string
	for range 2 {
		dir, err := s.build("thing", "1:2~3", newCacheKey("r"), fill)
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	if runs != 1 || dirs[0] != dirs[1] || strings.ContainsAny(filepath.Base(dirs[0]), ":~") {
		t.Errorf("%d runs, folders %q", runs, dirs)
	}
	other := newCacheKey("r")
	other.add("another compiler")
	if dir, err := s.build("thing", "1:2~3", other, fill); err != nil || dir == dirs[0] || runs != 2 {
		t.Errorf("another key: %q, %v, %d runs", dir, err, runs)
	}
}

func TestCacheKeySeparatesParts(t *testing.T) {
	a, b := newCacheKey("x"), newCacheKey("x")
	a.add("ab")
	a.add("c")
	b.add("a")
	b.add("bc")
	if a.String() == b.String() || len(a.String()) != 12 {
		t.Errorf("keys %q and %q", a, b)
	}
}

func TestCompilers(t *testing.T) {
	if got := compilers("amd64", "s390x"); !slices.Contains(got, "gcc-s390x-linux-gnu") || !slices.Contains(got, "libc6-dev-s390x-cross") {
		t.Errorf("cross: %q", got)
	}
	if got := compilers("s390x", "amd64"); !slices.Contains(got, "gcc-x86-64-linux-gnu") {
		t.Errorf("cross to amd64: %q", got)
	}
	if got := compilers("amd64", "amd64"); !slices.Contains(got, "gcc") {
		t.Errorf("native: %q", got)
	}
}

func TestNotInstalled(t *testing.T) {
	got, err := notInstalled(t.Context(), []string{"dpkg", "no-such-package-at-all"})
	if err != nil || !slices.Equal(got, []string{"no-such-package-at-all"}) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := notInstalled(t.Context(), []string{"dpkg"}); err != nil || len(got) > 0 {
		t.Errorf("got %q, %v", got, err)
	}
}

// beds returns the beds that were set up on this machine; none is a failure where the machine is said to have them.
func beds(t *testing.T) []*Bed {
	t.Helper()
	var beds []*Bed
	for _, arch := range initramfs.Architectures() {
		b, err := Load(os.Getenv("CLOISTER_CACHE"), arch)
		if err == nil {
			beds = append(beds, b)
		} else if os.Getenv("REQUIRE_QEMU") == "1" {
			t.Fatal(err)
		}
	}
	if len(beds) == 0 {
		t.Skip("no test bed on this machine: run 'cloister setup --arch all'")
	}
	return beds
}

func TestBuiltBinariesAreStatic(t *testing.T) {
	for _, b := range beds(t) {
		for _, path := range []string{b.Crun, b.Pause, b.Busybox} {
			checkStatic(t, path, b.Arch)
		}
	}
}

// The pause process of this machine's architecture ends on the signals that end a sandbox, and reaps its children.
func TestPause(t *testing.T) {
	var pause string
	for _, b := range beds(t) {
		if b.Arch == runtime.GOARCH {
			pause = b.Pause
		}
	}
	if pause == "" {
		t.Skip("no pause process of this machine's architecture: run 'cloister setup --arch all'")
	}
	if st, err := os.Stat(pause); err != nil || st.Size() > 4096 {
		t.Errorf("%v: %d bytes are many for a pause process", err, st.Size())
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		// The shell's child becomes the pause process's.
		cmd := exec.CommandContext(t.Context(), "sh", "-c", `sleep 0.05 & exec "$0"`, pause)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "its child is reaped", func() bool { return isPause(t, cmd.Process.Pid, pause) && children(t, cmd.Process.Pid) == "" })
		if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("the pause process ended by itself: %v", err)
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", signal, err)
		}
	}
}

func isPause(t *testing.T, pid int, pause string) bool {
	t.Helper()
	exe, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	if err != nil {
		t.Fatal(err)
	}
	return exe == pause
}

func children(t *testing.T, pid int) string {
	t.Helper()
	p := strconv.Itoa(pid)
	data, err := os.ReadFile(filepath.Join("/proc", p, "task", p, "children"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("in vain waited until %s", what)
}
