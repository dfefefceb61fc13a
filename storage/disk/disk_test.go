// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// machine is a folder with a sysfs and device nodes, which are regular files.
type machine struct {
	t   *testing.T
	dir string
}

func newMachine(t *testing.T) machine {
	t.Helper()
	m := machine{t, t.TempDir()}
	for _, dir := range []string{"sys/block", "dev"} {
		if err := os.MkdirAll(filepath.Join(m.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m machine) finder() Finder {
	return Finder{Sys: filepath.Join(m.dir, "sys"), Dev: filepath.Join(m.dir, "dev")}
}

// sysfs shows a disk of that many bytes in sysfs.
func (m machine) sysfs(name string, size int) {
	m.t.Helper()
	dir := filepath.Join(m.dir, "sys/block", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "size"), fmt.Appendf(nil, "%d\n", size/512), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) node(name string, data []byte) {
	m.t.Helper()
	path := filepath.Join(m.dir, "dev", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "new"), data, 0o600); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(m.dir, "new"), path); err != nil { // a disk is never seen half
		m.t.Fatal(err)
	}
}

func (m machine) disk(name string, data []byte) {
	m.t.Helper()
	m.node(name, data)
	m.sysfs(name, len(data))
}

func testHeader() []byte {
	h := bytes.Repeat([]byte("header"), 100_000/6)[:99_840] // not a multiple of readSize
	copy(h, luksMagic)
	return h
}

func withHeader(h []byte) []byte { return append(bytes.Clone(h), make([]byte, 512)...) }

func TestFound(t *testing.T) {
	h := testHeader()
	other := bytes.Clone(h)
	other[len(other)-1] ^= 1
	m := newMachine(t)
	m.disk("vda", withHeader(other))
	m.disk("vdb", make([]byte, 1<<20))
	m.disk("vdc", make([]byte, 512))
	m.disk("cciss!c0d1", nil)
	m.sysfs("cciss!c0d1", 1<<20)
	m.node("cciss/c0d1", withHeader(h))
	got, err := m.finder().ByHeader(t.Context(), h)
	if err != nil || got != filepath.Join(m.dir, "dev/cciss/c0d1") {
		t.Errorf("found %q, %v", got, err)
	}
}

// TestNotFound checks that the error says what is wrong with each disk, as its reader has no other way to find out.
func TestNotFound(t *testing.T) {
	h := testHeader()
	first, last := bytes.Clone(h), bytes.Clone(h)
	first[6] ^= 1
	last[len(last)-1] ^= 0x80
	for name, tc := range map[string]struct {
		setUp func(m machine)
		want  []string
	}{
		"no disks": {func(machine) {}, []string{"no disk at all"}},
		"no sysfs": {func(m machine) { _ = os.RemoveAll(filepath.Join(m.dir, "sys")) }, []string{"no disk at all"}},
		"only virtual": {func(m machine) {
			for _, name := range []string{"loop0", "ram0", "dm-0", "zram0"} {
				m.disk(name, withHeader(h))
			}
		}, []string{"no disk at all"}},
		"no medium": {func(m machine) { m.node("vda", withHeader(h)); m.sysfs("vda", 0) }, []string{"no disk at all"}},
		"modified": {func(m machine) { m.disk("vda", withHeader(first)); m.disk("vdb", withHeader(last)) }, []string{
			"none of the disks", "vda (its LUKS header differs from the pinned one: wrong or modified disk), vdb (its LUKS header differs",
		}},
		"others": {func(m machine) {
			m.disk("vda", make([]byte, 1<<20))
			m.disk("vdb", h[:512])
			m.node("vdc", h[:1024])
			m.sysfs("vdc", 1<<20)
			m.sysfs("vdd", 1<<20)
			m.sysfs("vde", 1<<20)
			if err := os.Mkdir(filepath.Join(m.dir, "dev/vde"), 0o755); err != nil {
				m.t.Fatal(err)
			}
		}, []string{
			"vda (no LUKS header)", "vdb (smaller than the header)", "vdc (cannot be read: unexpected EOF)",
			"vdd (cannot be opened: no such file or directory)", "vde (cannot be read: is a directory)",
		}},
		"many": {func(m machine) {
			for i := range 300 {
				m.disk(fmt.Sprintf("vd%03d", i), h[:512])
			}
		}, []string{"vd015 (smaller than the header), and 240 more"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			tc.setUp(m)
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				path, err := m.finder().ByHeader(ctx, h)
				if path != "" || !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("found %q, error %v", path, err)
				}
				for _, want := range tc.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error does not say %q: %v", want, err)
					}
				}
			})
		})
	}
}

func TestShortHeader(t *testing.T) {
	if _, err := (Finder{}).ByHeader(t.Context(), nil); err == nil {
		t.Error("an empty header finds a disk")
	}
}

// TestAppears has disks come up one after the other, as the kernel's probing does: sysfs first, then the node.
func TestAppears(t *testing.T) {
	h := testHeader()
	m := newMachine(t)
	synctest.Test(t, func(t *testing.T) {
		go func() {
			time.Sleep(3 * time.Second)
			m.disk("vda", make([]byte, 1<<20))
			time.Sleep(3 * time.Second)
			m.sysfs("vdb", 1<<20)
			time.Sleep(3 * time.Second)
			m.node("vdb", withHeader(h))
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		got, err := m.finder().ByHeader(ctx, h)
		if err != nil || filepath.Base(got) != "vdb" {
			t.Errorf("found %q, %v", got, err)
		}
	})
}

// slowDisk never answers until it is released.
type slowDisk struct{ release chan struct{} }

func (d slowDisk) Read([]byte) (int, error) { <-d.release; return 0, unix.EIO }
func (slowDisk) Close() error               { return nil }

// countingDisk counts what is read of it.
type countingDisk struct {
	r     io.Reader
	bytes *atomic.Int64
}

func (d countingDisk) Read(b []byte) (int, error) {
	n, err := d.r.Read(b)
	d.bytes.Add(int64(n))
	return n, err
}
func (countingDisk) Close() error { return nil }

// TestHostileDisks: disks that hang or fail do not hide the right one, and each is opened once and read no further than
// the header.
func TestHostileDisks(t *testing.T) {
	h := testHeader()
	m := newMachine(t)
	for i := range 20 {
		m.sysfs(fmt.Sprintf("slow%d", i), 1<<20)
		m.sysfs(fmt.Sprintf("bad%d", i), 1<<20)
	}
	m.sysfs("other", 1<<20)
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		var mu sync.Mutex
		opened := map[string]int{}
		var read atomic.Int64
		f := m.finder()
		f.open = func(path string) (io.ReadCloser, error) {
			name := filepath.Base(path)
			mu.Lock()
			opened[name]++
			mu.Unlock()
			switch {
			case strings.HasPrefix(name, "slow"):
				return slowDisk{release}, nil
			case strings.HasPrefix(name, "bad"):
				return nil, &fs.PathError{Op: "open", Path: path, Err: unix.EIO}
			case name == "other":
				return countingDisk{bytes.NewReader(make([]byte, 1<<20)), &read}, nil
			}
			return io.NopCloser(bytes.NewReader(withHeader(h))), nil
		}
		go func() {
			time.Sleep(10 * time.Second)
			m.sysfs("zz", 1<<20)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		got, err := f.ByHeader(ctx, h)
		if err != nil || filepath.Base(got) != "zz" {
			t.Errorf("found %q, %v", got, err)
		}
		if n := read.Load(); n != int64(len(h)) {
			t.Errorf("read %d bytes, want %d", n, len(h))
		}
		mu.Lock()
		for name, n := range opened {
			if n != 1 {
				t.Errorf("%s was opened %d times", name, n)
			}
		}
		if len(opened) != 42 {
			t.Errorf("%d disks were opened", len(opened))
		}
		mu.Unlock()

		short, cancelShort := context.WithTimeout(t.Context(), time.Second)
		defer cancelShort()
		if err := os.RemoveAll(filepath.Join(m.dir, "sys/block/zz")); err != nil {
			t.Fatal(err)
		}
		_, err = f.ByHeader(short, h)
		if err == nil || !strings.Contains(err.Error(), "bad0 (cannot be opened: input/output error), bad1 ") ||
			!strings.Contains(err.Error(), "and 25 more") {
			t.Errorf("error %v", err)
		}
	})
}

func FuzzLook(f *testing.F) {
	f.Add([]byte("LUKS\xba\xbe and more"), []byte("LUKS\xba\xbe and more"))
	f.Add([]byte("LUKS\xba\xbe"), []byte("LUKS\xba\xbe and more"))
	f.Add([]byte("LUKS\xba\xbe and more"), []byte("LUKS\xba\xbe"))
	f.Fuzz(func(t *testing.T, disk, header []byte) {
		if len(header) < len(luksMagic) {
			return
		}
		s := search{Finder: Finder{open: func(string) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(disk)), nil
		}}, header: header}
		if got, want := s.look("x").match, bytes.HasPrefix(disk, header); got != want {
			t.Errorf("match is %v, want %v", got, want)
		}
	})
}
