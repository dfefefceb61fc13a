// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package share

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	reg  = unix.S_IFREG
	dir  = unix.S_IFDIR
	link = unix.S_IFLNK
)

// open returns a shared folder beside a folder "outside" with a secret.
func open(tb testing.TB) (d *Dir, root, outside string) {
	tb.Helper()
	base := tb.TempDir()
	root, outside = filepath.Join(base, "run", "shared"), filepath.Join(base, "outside")
	d, err := Open(root, 1<<20)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	if err := os.Mkdir(outside, 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return d, root, outside
}

// file returns a file with this process's owner, which needs no privilege.
func file(name string, mode uint32, data string) File {
	f := File{Path: name, Mode: mode, DirMode: 0x800001e8 | 0o7000, UID: int32(os.Getuid()), GID: int32(os.Getgid()), Data: []byte(data)}
	if mode&unix.S_IFMT == reg {
		f.Size = int64(len(data))
	}
	return f
}

// tree describes everything below a folder: type, mode, owner, link target, contents.
func tree(tb testing.TB, root string) string {
	tb.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		fmt.Fprintf(&b, "%q %o %d:%d %d", rel, st.Mode, st.Uid, st.Gid, st.Nlink)
		switch {
		case err != nil:
			return err
		case st.Mode&unix.S_IFMT == link:
			target, err := os.Readlink(name)
			fmt.Fprintf(&b, " -> %q\n", target)
			return err
		case st.Mode&unix.S_IFMT == reg:
			data, err := os.ReadFile(name)
			fmt.Fprintf(&b, " %q\n", data)
			return err
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

func lstat(t *testing.T, name string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func content(t *testing.T, name, want string) {
	t.Helper()
	if data, err := os.ReadFile(name); err != nil || string(data) != want {
		t.Errorf("%s has %q (%v), want %q", name, data, err, want)
	}
}

func TestKinds(t *testing.T) {
	d, root, _ := open(t)
	for _, tc := range []struct {
		name, data string
		mode, want uint32
	}{
		{"plain", "text", reg | 0o640, reg | 0o640},
		{"no-type", "text", 0o604, reg | 0o604},
		{"empty", "", reg | 0o444, reg | 0o444},
		{"set-id", "x", reg | 0o6755, reg | 0o6755},
		{"sub/folder", "", dir | 0o3777, dir | 0o3777},
		{"link", "/etc/passwd", link | 0o777, link | 0o777},
		{"new\nline\t\xff", "x", reg | 0o600, reg | 0o600},
		{"..data", "..2026", link | 0o777, link | 0o777},
		{strings.Repeat("n", 255), "x", reg | 0o600, reg | 0o600},
	} {
		f := file(filepath.Join(root, tc.name), tc.mode, tc.data)
		if tc.mode < 0o10000 {
			f.Size = int64(len(tc.data))
		}
		if err := d.Copy(f); err != nil {
			t.Errorf("%q: %v", tc.name, err)
			continue
		}
		if st := lstat(t, f.Path); st.Mode != tc.want || st.Uid != uint32(f.UID) || st.Gid != uint32(f.GID) {
			t.Errorf("%q: mode %o owner %d:%d, want %o", tc.name, st.Mode, st.Uid, st.Gid, tc.want)
		}
		switch tc.want & unix.S_IFMT {
		case reg:
			content(t, f.Path, tc.data)
		case link:
			if target, err := os.Readlink(f.Path); err != nil || target != tc.data {
				t.Errorf("%q points to %q, %v", tc.name, target, err)
			}
		}
	}
	if st := lstat(t, root+"/sub"); st.Mode != dir|0o750 {
		t.Errorf("folder on the way has mode %o, want the lowest nine bits of dir_mode", st.Mode)
	}
	open := file(root+"/open/x", reg|0o666, "")
	open.DirMode = 0o777 // more than the umask lets through
	if err := d.Copy(open); err != nil {
		t.Fatal(err)
	}
	if st := lstat(t, root+"/open"); st.Mode != dir|0o777 {
		t.Errorf("folder on the way has mode %o", st.Mode)
	}
}

// TestOwner needs root to see that owners are set, and that chown does not clear the set-id bits.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("chown needs root")
	}
	d, root, _ := open(t)
	for i, mode := range []uint32{reg | 0o6755, dir | 0o6755, link | 0o777} {
		f := file(fmt.Sprintf("%s/a/b%d/x", root, i), mode, "")
		if mode == link|0o777 {
			f.Data = []byte("t")
		}
		f.UID, f.GID = -2, 4321 // -2 is 4294967294
		if err := d.Copy(f); err != nil {
			t.Fatal(err)
		}
		if st := lstat(t, f.Path); st.Mode != mode || st.Uid != 1<<32-2 || st.Gid != 4321 {
			t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
		}
		if st := lstat(t, filepath.Dir(f.Path)); st.Uid != 1<<32-2 || st.Gid != 4321 {
			t.Errorf("folder's owner %d:%d", st.Uid, st.Gid)
		}
	}
	if st := lstat(t, root+"/a"); st.Uid != 0 || st.Gid != 0 {
		t.Errorf("a folder further up has owner %d:%d", st.Uid, st.Gid)
	}
	f := file(root+"/top", reg|0o600, "")
	f.UID = 99
	if err := d.Copy(f); err != nil {
		t.Fatal(err)
	}
	if st := lstat(t, root); st.Uid != 0 {
		t.Errorf("the shared folder itself was given to %d", st.Uid)
	}
}

func TestArguments(t *testing.T) {
	d, root, _ := open(t)
	for name, change := range map[string]func(*File){
		"negative size":   func(f *File) { f.Size = -1 },
		"too large":       func(f *File) { f.Size = 1<<20 + 1 },
		"negative offset": func(f *File) { f.Offset = -1 },
		"overflow":        func(f *File) { f.Offset, f.Size = 1<<63-1, 1<<63-1 },
		"beyond size":     func(f *File) { f.Size = 3 },
		"not begun":       func(f *File) { f.Offset, f.Size = 4, 8 },
		"much data":       func(f *File) { f.Data = make([]byte, maxData+1); f.Size = maxData + 1 },
		"no uid":          func(f *File) { f.UID = -1 },
		"no gid":          func(f *File) { f.GID = -1 },
		"device":          func(f *File) { f.Mode = unix.S_IFBLK },
		"char device":     func(f *File) { f.Mode = unix.S_IFCHR },
		"fifo":            func(f *File) { f.Mode = unix.S_IFIFO },
		"socket":          func(f *File) { f.Mode = unix.S_IFSOCK },
		"all types":       func(f *File) { f.Mode = unix.S_IFMT },
		"folder data":     func(f *File) { f.Mode = dir },
		"folder offset":   func(f *File) { f.Mode, f.Data, f.Offset = dir, nil, 1 },
		"empty link":      func(f *File) { f.Mode, f.Data = link, nil },
		"link offset":     func(f *File) { f.Mode, f.Offset = link, 1 },
		"long link":       func(f *File) { f.Mode, f.Data = link, bytes.Repeat([]byte("x"), 4096) },
		"zero in link":    func(f *File) { f.Mode, f.Data = link, []byte("a\x00b") },
	} {
		f := file(root+"/x", reg|0o600, "data")
		change(&f)
		if err := d.Copy(f); err == nil {
			t.Errorf("%s: no error", name)
		}
		if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
			t.Errorf("%s left %v (%v)", name, entries, err)
		}
	}
	for _, root := range []string{"", "x", "/", "/x/../y", "/x/"} {
		if _, err := Open(root, 0); err == nil {
			t.Errorf("folder %q was opened", root)
		}
	}
	if _, err := Open(root, -1); err == nil {
		t.Error("negative limit")
	}
}

// part returns the bytes [from, to) of data as a part of a file.
func part(name, data string, from, to int) File {
	f := file(name, reg|0o600, data)
	f.Offset, f.Data = int64(from), f.Data[from:to]
	return f
}

func TestParts(t *testing.T) {
	d, root, _ := open(t)
	name, data := root+"/sub/file", "0123456789"
	step := func(f File, wantErr bool, now string) {
		t.Helper()
		if err := d.Copy(f); (err != nil) != wantErr {
			t.Errorf("bytes at %d: %v", f.Offset, err)
		}
		if got, err := os.ReadFile(name); string(got) != now || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after bytes at %d the file has %q (%v), want %q", f.Offset, got, err, now)
		}
	}
	step(part(name, data, 0, 4), false, "")
	step(part(name, data, 5, 10), true, "") // a hole
	wrong := part(name, data, 4, 8)
	wrong.Size = 11
	step(wrong, true, "")
	step(part(name, data, 4, 8), false, "")
	step(part(name, data, 4, 8), false, "") // sent again
	step(part(name, data, 8, 10), false, data)
	step(part(name, data, 8, 10), true, data) // complete: nothing is begun
	step(part(name, "abcdefghij", 0, 4), false, data)
	step(part(name, "ABCDEFGHIJ", 0, 9), false, data) // anew; the old file stays until this one is complete
	step(part(name, "ABCDEFGHIJ", 9, 10), false, "ABCDEFGHIJ")
	step(part(name, "", 0, 0), false, "")
	if len(d.transfers) != 0 {
		t.Errorf("%d transfers left", len(d.transfers))
	}
	noLeftover(t, root)
}

func TestTooMany(t *testing.T) {
	d, root, _ := open(t)
	name := func(i int) string { return fmt.Sprintf("%s/%d", root, i) }
	for i := range maxTransfers {
		if err := d.Copy(part(name(i), "xy", 0, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Copy(part(name(0), "xyz", 0, 1)); err != nil { // begun anew, so that 1 is the oldest
		t.Fatal(err)
	}
	if err := d.Copy(part(name(1000), "xy", 0, 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.Copy(part(name(1), "xy", 1, 2)); err == nil {
		t.Error("the oldest transfer was kept")
	}
	for _, i := range []int{2, maxTransfers - 1, 1000} {
		if err := d.Copy(part(name(i), "xy", 1, 2)); err != nil {
			t.Error(err)
		}
	}
	for _, tr := range d.transfers {
		tr.busy = true
	}
	for i := range 4 {
		err := d.Copy(part(name(2000+i), "xy", 0, 1))
		for _, tr := range d.transfers {
			tr.busy = true
		}
		if wantErr := i == 3; (err != nil) != wantErr {
			t.Errorf("%d more: %v", i+1, err)
		}
	}
	if err := d.Copy(part(name(0), "xyz", 1, 2)); !errors.Is(err, errBusy) {
		t.Errorf("busy: %v", err)
	}
}

func TestConcurrent(t *testing.T) {
	d, root, _ := open(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			data := strings.Repeat(fmt.Sprint(i), 5000)
			for n := range 20 {
				own, same := fmt.Sprintf("%s/deep/%d/own%d", root, n, i), root+"/deep/same"
				for at := 0; at < len(data); at += 1000 {
					if err := d.Copy(part(own, data, at, at+1000)); err != nil {
						t.Error(err)
					}
				}
				if err := d.Copy(file(same, reg|0o600, data)); err != nil && !errors.Is(err, errBusy) {
					t.Error(err)
				}
				if err := d.Copy(file(root+"/deep/link", link, fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
				if err := d.Copy(file(fmt.Sprintf("%s/deep/dir%d", root, n), dir|0o700, "")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		content(t, fmt.Sprintf("%s/deep/19/own%d", root, i), strings.Repeat(fmt.Sprint(i), 5000))
	}
	same, err := os.ReadFile(root + "/deep/same")
	if err != nil || len(same) != 5000 || bytes.Count(same, same[:1]) != 5000 {
		t.Errorf("a file that all wrote is mixed, or missing: %d bytes, %v", len(same), err)
	}
	noLeftover(t, root)
}
