// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newWatcher(t *testing.T, h Hierarchy) *Watcher {
	t.Helper()
	w, err := NewWatcher(h, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// plainGroup makes a folder that looks like a group of one process.
func plainGroup(t *testing.T, root, name string) string {
	t.Helper()
	dir := filepath.Join(root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, eventsFile), "populated 1\nfrozen 0\n")
	write(t, filepath.Join(dir, memoryEvents), "oom 0\noom_kill 0\noom_group_kill 0\n")
	return dir
}

// change overwrites the start of a file in one step, as a change of a kernel's file is.
func change(t *testing.T, path, content string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(content)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for what another goroutine or process brings about.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: did not come about", what)
		}
	}
}

func (w *Watcher) has(path string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.watches[path] != nil
}

func TestWatcher(t *testing.T) {
	root := t.TempDir()
	a, b := plainGroup(t, root, "a"), plainGroup(t, root, "b")
	w := newWatcher(t, Hierarchy{Root: root})
	calls := make(chan string, 10)
	for _, path := range []string{"/a", "/b"} {
		if err := w.Add(path, func() { calls <- path }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Add("/a", func() {}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second watch: %v", err)
	}
	// Neither a limit that was met without a kill nor another change calls back; one callback stands for all new kills.
	change(t, filepath.Join(a, memoryEvents), "oom 9")
	change(t, filepath.Join(a, eventsFile), "populated 1\nfrozen 1")
	change(t, filepath.Join(b, memoryEvents), "oom 1\noom_kill 3")
	if got := <-calls; got != "/b" {
		t.Errorf("callback of %s", got)
	}
	change(t, filepath.Join(a, memoryEvents), "oom 9\noom_kill 0\noom_group_kill 1")
	if got := <-calls; got != "/a" {
		t.Errorf("callback of %s", got)
	}
	// The last process ends.
	change(t, filepath.Join(b, eventsFile), "populated 0")
	eventually(t, "end of the watch", func() bool { return !w.has("/b") })
	if err := w.Add("/b", func() { calls <- "/b" }); err != nil {
		t.Errorf("watch again: %v", err)
	}
	// The first process comes, the group is empty for the time being.
	change(t, filepath.Join(b, memoryEvents), "oom 1\noom_kill 4")
	if got := <-calls; got != "/b" || !w.has("/b") {
		t.Errorf("callback of %s", got)
	}
	w.Remove("/a")
	w.Remove("/a")
	change(t, filepath.Join(a, memoryEvents), "oom 9\noom_kill 5")
	change(t, filepath.Join(b, memoryEvents), "oom 1\noom_kill 5")
	if got := <-calls; got != "/b" {
		t.Errorf("callback of %s after its removal", got)
	}
}

func TestWatcherErrors(t *testing.T) {
	root := t.TempDir()
	w := newWatcher(t, Hierarchy{Root: root})
	if err := os.Remove(filepath.Join(plainGroup(t, root, "bare"), memoryEvents)); err != nil {
		t.Fatal(err)
	}
	if err := w.Add("/bare", func() {}); !errors.Is(err, errNoController) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no memory controller: %v", err)
	}
	write(t, filepath.Join(plainGroup(t, root, "garbage"), memoryEvents), "oom_kill -1\n")
	if err := w.Add("/garbage", func() {}); err == nil {
		t.Error("a malformed file was taken")
	}
	if len(w.byFile) != 0 || len(w.watches) != 0 {
		t.Errorf("left over: %v %v", w.byFile, w.watches)
	}
	plainGroup(t, root, "late")
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Add("/late", func() {}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("watch after the end: %v", err)
	}
}

// TestWatcherLost has events missing: lost by the kernel's queue, or not delivered before the removal.
func TestWatcherLost(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(plainGroup(t, root, "a"), memoryEvents)
	w := newWatcher(t, Hierarchy{Root: root})
	calls := make(chan bool, 10) // the watcher calls, too, when it hears that its watch of a file has ended
	if err := w.Add("/a", func() { calls <- true }); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	for _, wd := range w.watches["/a"].files {
		if err := w.control(func(fd int) { _, _ = unix.InotifyRmWatch(fd, uint32(wd)) }); err != nil {
			t.Fatal(err)
		}
	}
	w.mu.Unlock()
	change(t, file, "oom 1\noom_kill 1")
	for _, oom := range w.handle([]int32{-1}) {
		oom()
	}
	<-calls
	change(t, file, "oom 1\noom_kill 2")
	w.Remove("/a")
	<-calls
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if n := len(calls); n != 0 {
		t.Errorf("%d callbacks too many", n)
	}
}

// TestWatcherMany watches more groups than a user may have inotify instances.
func TestWatcherMany(t *testing.T) {
	const groups = 500
	root := t.TempDir()
	w := newWatcher(t, Hierarchy{Root: root})
	before := openFiles(t)
	calls := make(chan int, groups)
	for i := range groups {
		plainGroup(t, root, fmt.Sprint(i))
		if err := w.Add(fmt.Sprint("/", i), func() { calls <- i }); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d open files, %d before", after, before)
	}
	seen := map[int]bool{}
	for i := range groups {
		change(t, filepath.Join(root, fmt.Sprint(i), memoryEvents), "oom 1\noom_kill 1")
	}
	for range groups {
		seen[<-calls] = true
	}
	if len(seen) != groups {
		t.Errorf("%d groups called back", len(seen))
	}
	for i := range groups {
		w.Remove(fmt.Sprint("/", i))
	}
	if len(w.watches) != 0 || len(w.byFile) != 0 {
		t.Errorf("left over: %d watches, %d files", len(w.watches), len(w.byFile))
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
