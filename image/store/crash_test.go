// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Variables of a child process that is killed.
const (
	childRoot = "CLOISTER_TEST_STORE_ROOT"
	childStep = "CLOISTER_TEST_STORE_STEP"
)

// TestMain is also the program that TestKill kills.
func TestMain(m *testing.M) {
	if root := os.Getenv(childRoot); root != "" {
		if err := crashingChild(root, os.Getenv(childStep)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// crashingChild commits two layers beside the one that is there, removes the oldest, and commits it anew. It kills itself
// before the change to the disk with that number.
func crashingChild(root, step string) error {
	n, err := strconv.Atoi(step)
	if err != nil {
		return err
	}
	s, err := Open(Config{Root: root, Keep: true})
	if err != nil {
		return err
	}
	s.step = func(string) error {
		if n--; n == 0 {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
	for _, name := range []string{"one", "two"} {
		if err := put(s, name); err != nil {
			return err
		}
	}
	if removed, err := s.removeOldest(func(e *entry) bool { return e.layer.Blob == digest.FromString("old") }); err != nil || !removed {
		return fmt.Errorf("remove: %t, %w", removed, err)
	}
	return put(s, "old")
}

// put commits a layer of two files.
func put(s *Store, name string) error {
	t, err := s.NewStaging()
	if err != nil {
		return err
	}
	for _, f := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(t.Dir(), f), []byte(name), 0o600); err != nil {
			return errors.Join(err, t.Discard())
		}
	}
	_, err = t.Commit(Layer{Blob: digest.FromString(name), DiffID: digest.FromString("plain " + name), Size: int64(2 * len(name))})
	return errors.Join(err, t.Discard())
}

// check looks at every layer of a store, and that there is nothing else. It returns their names.
func check(t *testing.T, s *Store) []string {
	t.Helper()
	var names []string
	for _, name := range []string{"old", "one", "two"} {
		l, ok := s.Layer(digest.FromString(name))
		if !ok {
			continue
		}
		names = append(names, name)
		if l.DiffID != digest.FromString("plain "+name) || l.Size != int64(2*len(name)) {
			t.Errorf("layer %s is %+v", name, l)
		}
		for _, f := range []string{"a", "b"} {
			if got := read(t, filepath.Join(l.link, f)); got != name {
				t.Errorf("layer %s has %s with %q", name, f, got)
			}
		}
	}
	for dir, want := range map[string]int{filepath.Join(layersDir, "*"): len(names), linksDir: len(names), recordsDir: len(names), stagingDir: 0, containersDir: 0} {
		found, err := filepath.Glob(filepath.Join(s.root, dir, "*"))
		if err != nil || len(found) != want {
			t.Errorf("%s has %q, %v; want %d", dir, found, err, want)
		}
	}
	return names
}

// folder is one on a tmpfs where that can be had: writing a whole disk out takes long.
func folder(t *testing.T) string {
	t.Helper()
	if os.Geteuid() == 0 {
		return scratch(t)
	}
	return t.TempDir()
}

func reopen(t *testing.T, root string) *Store {
	t.Helper()
	s, err := Open(Config{Root: root, Keep: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Threat: the agent is killed between any two changes to the disk. Seen: the store opens, each layer is there in full or
// not at all, what was there before stays unless it was being removed, and every layer can be had again.
func TestKill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for step := 1; ; step++ {
		root := folder(t)
		s := reopen(t, root)
		if err := errors.Join(put(s, "old"), s.Close()); err != nil {
			t.Fatal(err)
		}
		s.lock = nil
		child := exec.CommandContext(t.Context(), self)
		child.Env = append(os.Environ(), childRoot+"="+root, childStep+"="+strconv.Itoa(step))
		out, err := child.CombinedOutput()
		killed := child.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if err != nil && !killed {
			t.Fatalf("step %d: %v: %s", step, err, out)
		}
		s = reopen(t, root)
		names := check(t, s)
		if !killed {
			if !slices.Equal(names, []string{"old", "one", "two"}) {
				t.Errorf("without a kill: %q", names)
			}
			if step < 20 {
				t.Errorf("only %d steps", step)
			}
			return
		}
		if step <= 6 && !slices.Contains(names, "old") {
			t.Errorf("step %d: a layer is gone that nobody touched: %q", step, names)
		}
		for _, name := range []string{"old", "one", "two"} {
			if err := put(s, name); err != nil {
				t.Errorf("step %d: %v", step, err)
			}
		}
		if again := check(t, s); len(again) != 3 {
			t.Errorf("step %d: after pulling again: %q", step, again)
		}
		if step > 100 {
			t.Fatal("no end")
		}
	}
}

// A change that fails, because the disk is full or broken, fails alone.
func TestFailingDisk(t *testing.T) {
	for step := 1; ; step++ {
		s := reopen(t, folder(t))
		if err := put(s, "old"); err != nil {
			t.Fatal(err)
		}
		n := step
		s.step = func(name string) error {
			if n--; n == 0 {
				return fmt.Errorf("%s: %w", name, unix.ENOSPC)
			}
			return nil
		}
		err := put(s, "one")
		if n > 0 {
			if err != nil {
				t.Error(err)
			}
			if step < 5 {
				t.Errorf("only %d steps", step)
			}
			break
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("step %d: %v", step, err)
		}
		if names := check(t, s); !slices.Equal(names, []string{"old"}) {
			t.Errorf("step %d: after the failure %q", step, names)
		}
		if err := put(s, "one"); err != nil {
			t.Errorf("step %d: again: %v", step, err)
		}
	}
	// The same for removals: a layer that is half removed is no layer, and can be had again.
	for step := 1; step <= 4; step++ {
		s := reopen(t, folder(t))
		if err := put(s, "old"); err != nil {
			t.Fatal(err)
		}
		n := step
		s.step = func(name string) error {
			if n--; n == 0 {
				return fmt.Errorf("%s: %w", name, unix.EIO)
			}
			return nil
		}
		if _, err := s.removeOldest(func(*entry) bool { return true }); !errors.Is(err, unix.EIO) {
			t.Errorf("removal, step %d: %v", step, err)
		}
		if err := put(s, "old"); err != nil {
			t.Errorf("removal, step %d: again: %v", step, err)
		}
		l, ok := s.Layer(digest.FromString("old"))
		if !ok || read(t, filepath.Join(l.link, "a")) != "old" {
			t.Errorf("removal, step %d: %+v, %t", step, l, ok)
		}
	}
}

// What does not look right at start is not used.
func TestLoadRefuses(t *testing.T) {
	blob, diff := digest.FromString("x"), digest.FromString("y")
	good := fmt.Sprintf(`{"version":2,"blob":%q,"diffID":%q,"encrypted":true,"opaque":false,"size":5}`, blob, diff)
	name := "sha256-" + blob.Encoded()
	for title, tt := range map[string]struct {
		file, data string
		folder     bool
		want       int
	}{
		"good":            {name, good, true, 1},
		"no folder":       {name, good, false, 0},
		"another name":    {"sha256-" + diff.Encoded(), good, true, 0},
		"cut":             {name, good[:20], true, 0},
		"empty":           {name, "", true, 0},
		"unknown version": {name, strings.Replace(good, `:2,`, `:3,`, 1), true, 0},
		"unknown field":   {name, strings.Replace(good, `"size"`, `"sizes"`, 1), true, 0},
		"not a digest":    {name, strings.Replace(good, string(diff), "../../x", 1), true, 0},
		"large":           {name, good + strings.Repeat(" ", maxRecord), true, 0},
	} {
		t.Run(title, func(t *testing.T) {
			root := t.TempDir()
			write(t, filepath.Join(root, recordsDir, tt.file), tt.data)
			write(t, filepath.Join(root, layersDir, "sha256", "planted", "f"), "x")
			write(t, filepath.Join(root, stagingDir, "7", "f"), "x")
			if tt.folder {
				write(t, filepath.Join(root, layersDir, "sha256", blob.Encoded(), "f"), "content")
			}
			s := reopen(t, root)
			if len(s.layers) != tt.want {
				t.Errorf("%d layers, want %d", len(s.layers), tt.want)
			}
			if l, ok := s.Layer(blob); ok && (l.DiffID != diff || !l.Encrypted || l.Size != 5 || read(t, filepath.Join(l.link, "f")) != "content") {
				t.Errorf("layer %+v", l)
			}
			for _, dir := range []string{"layers/sha256", "records"} {
				if found, _ := filepath.Glob(filepath.Join(root, dir, "*")); len(found) != tt.want {
					t.Errorf("%s has %q", dir, found)
				}
			}
		})
	}
	root := t.TempDir()
	s := reopen(t, root)
	if _, err := Open(Config{Root: root, Keep: true}); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("the same store twice: %v", err)
	}
	if err := put(s, "one"); err != nil {
		t.Fatal(err)
	}
	emptied, err := Open(Config{Root: root})
	if err != nil || len(emptied.layers) != 0 {
		t.Errorf("without Keep: %d layers, %v", len(emptied.layers), err)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(`{"version":1,"blob":%q,"diffID":%q,"encrypted":true,"size":5}`, digest.FromString("x"), digest.FromString("y"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := parseRecord(data)
		if err == nil && (l.Blob.Validate() != nil || l.DiffID.Validate() != nil || l.Size < 0) {
			t.Fatalf("%+v", l)
		}
	})
}
