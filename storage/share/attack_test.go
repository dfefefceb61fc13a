// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package share

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReplace(t *testing.T) {
	d, root, outside := open(t)
	secret := filepath.Join(outside, "secret")
	for name, tc := range map[string]struct {
		there func(name string) error
		fails uint32 // a kind that must fail, 0 for none
	}{
		"file":      {func(n string) error { return os.WriteFile(n, []byte("old"), 0o600) }, 0},
		"link":      {func(n string) error { return os.Symlink(secret, n) }, 0},
		"loop":      {func(n string) error { return os.Symlink(n, n) }, 0},
		"fifo":      {func(n string) error { return unix.Mkfifo(n, 0o600) }, 0},
		"hard link": {func(n string) error { return os.Link(secret, n) }, 0},
		"folder":    {func(n string) error { return os.MkdirAll(n+"/full", 0o700) }, 1},
		"empty":     {func(n string) error { return os.Mkdir(n, 0o700) }, 1},
		"dirlink":   {func(n string) error { return os.Symlink(outside, n) }, 0},
	} {
		for _, kind := range []uint32{reg, dir, link} {
			before := tree(t, outside)
			target := filepath.Join(root, fmt.Sprintf("%s-%o", name, kind))
			if err := tc.there(target); err != nil {
				t.Fatal(err)
			}
			data := "new"
			if kind == dir {
				data = ""
			}
			err := d.Copy(file(target, kind|0o711, data))
			if wantErr := tc.fails != 0 && kind != dir; (err != nil) != wantErr {
				t.Errorf("%s replaced by %o: %v", name, kind, err)
			} else if wantErr {
				kind = dir
			}
			if st := lstat(t, target); st.Mode&unix.S_IFMT != kind {
				t.Errorf("%s is %o now, want %o", name, st.Mode, kind)
			}
			if name == "hard link" {
				os.Remove(target)
				before = strings.Replace(before, " 2 ", " 1 ", 1)
			}
			if after := tree(t, outside); after != before {
				t.Errorf("%s, %o: outside changed from\n%s to\n%s", name, kind, before, after)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(root, "folder-100000", "full")); err != nil {
		t.Errorf("a folder lost its contents: %v", err)
	}
	noLeftover(t, root)
}

func noLeftover(t *testing.T, root string) {
	t.Helper()
	if s := tree(t, root); strings.Contains(s, reserved) {
		t.Errorf("temporary file left behind:\n%s", s)
	}
}

func TestPaths(t *testing.T) {
	d, root, outside := open(t)
	if err := os.Symlink(outside, root+"/out"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", root+"/etc"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", root+"/in"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(root+"/real", 0o755), os.WriteFile(root+"/file", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("/"+strings.Repeat("x", 200), 25)
	before, etc := tree(t, root)+tree(t, outside), lstat(t, "/etc")
	for name, tc := range map[string]struct {
		path   string
		syntax bool
	}{
		"empty":         {"", true},
		"relative":      {"shared/x", true},
		"root":          {root, true},
		"root slash":    {root + "/", true},
		"sibling":       {root + "x/y", true},
		"up":            {root + "/../x", true},
		"up inside":     {root + "/real/../x", true},
		"up only":       {root + "/..", true},
		"dot":           {root + "/./x", true},
		"double slash":  {root + "//x", true},
		"trailing":      {root + "/x/", true},
		"zero byte":     {root + "/x\x00y", true},
		"outside":       {outside + "/x", true},
		"4096 bytes":    {root + long[:4096-len(root)], true},
		"long name":     {root + "/" + strings.Repeat("n", 256), true},
		"deep":          {root + strings.Repeat("/d", 129), true},
		"reserved":      {root + "/" + reserved + "x", true},
		"reserved dir":  {root + "/" + reserved + "x/y", true},
		"link out":      {root + "/out/x", false},
		"link etc":      {root + "/etc/x", false},
		"link in":       {root + "/in/x", false},
		"link out deep": {root + "/out/a/b", false},
		"file as dir":   {root + "/file/x", false},
	} {
		for _, kind := range []uint32{reg, dir, link} {
			data := "t"
			if kind == dir {
				data = ""
			}
			if err := d.Copy(file(tc.path, kind|0o700, data)); err == nil || errors.Is(err, ErrPath) != tc.syntax {
				t.Errorf("%s, %o: %v", name, kind, err)
			}
		}
		if f, err := d.OpenBeneath(tc.path); err == nil {
			f.Close()
			t.Errorf("%s was opened", name)
		}
		if _, err := d.ReadHead(tc.path, 10); err == nil {
			t.Errorf("%s was read", name)
		}
	}
	if after := tree(t, root) + tree(t, outside); after != before || lstat(t, "/etc").Ctim != etc.Ctim {
		t.Errorf("changed from\n%s to\n%s", before, after)
	}
	deep := root + strings.Repeat("/d", 128)
	if err := d.Copy(file(deep, reg|0o600, "deep")); err != nil {
		t.Error(err)
	}
	content(t, deep, "deep")
	longest := root + long[:4095-len(root)]
	if err := d.Copy(file(longest, reg|0o600, "long")); err != nil {
		t.Error(err)
	}
	content(t, longest, "long")
}

// TestSwap: a folder on the way becomes a link to the outside between two parts. Were the path resolved once and kept,
// or a link followed, the file would appear there.
func TestSwap(t *testing.T) {
	d, root, outside := open(t)
	name := root + "/sub/secret"
	if err := d.Copy(file(root+"/sub", dir|0o755, "")); err != nil {
		t.Fatal(err)
	}
	if err := d.Copy(part(name, "evil", 0, 2)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(root+"/sub"), os.Symlink(outside, root+"/sub")); err != nil {
		t.Fatal(err)
	}
	if err := d.Copy(part(name, "evil", 2, 4)); !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		t.Errorf("second part: %v", err)
	}
	content(t, outside+"/secret", "secret")
	if len(d.transfers) != 0 {
		t.Error("the failed transfer is kept")
	}
}

func TestOpenBeneath(t *testing.T) {
	d, root, outside := open(t)
	for _, f := range []File{
		file(root+"/a/file", reg|0o600, "hello"),
		file(root+"/a/up", link, "../a/file"),
		file(root+"/a/secret", link, outside+"/secret"),
		file(root+"/dirlink", link, "a"),
	} {
		if err := d.Copy(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(root+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	t.Chdir(root) // a socket's path has 107 bytes at most
	if err := unix.Bind(sock, &unix.SockaddrUnix{Name: "sock"}); err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{
		"a": true, "a/file": true, "a/up": false, "a/secret": false, "dirlink": false, "dirlink/file": false, "fifo": false,
		"sock": false, "missing": false,
	} {
		f, err := d.OpenBeneath(root + "/" + name)
		if (err == nil) != ok {
			t.Errorf("open %s: %v", name, err)
		}
		if err == nil {
			if n, err := f.Read(make([]byte, 1)); err == nil {
				t.Errorf("%d bytes read from a file opened as a path", n)
			}
			f.Close()
		}
		data, err := d.ReadHead(root+"/"+name, 4)
		if readable := name == "a/file"; (err == nil) != readable || readable && string(data) != "hell" {
			t.Errorf("read %s: %q, %v", name, data, err)
		}
	}
	if _, err := d.ReadHead(root+"/missing", 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if data, err := d.ReadHead(root+"/a/file", 4096); err != nil || string(data) != "hello" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestDevice needs root to make a device node, which a container with CAP_MKNOD might leave in a shared folder.
func TestDevice(t *testing.T) {
	d, root, _ := open(t)
	err := unix.Mknod(root+"/zero", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5)))
	if errors.Is(err, unix.EPERM) && os.Getenv("CLOISTER_GUEST") != "1" {
		t.Skip("making a device needs root")
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadHead(root+"/zero", 4); err == nil {
		t.Error("a device was read")
	}
	if f, err := d.OpenBeneath(root + "/zero"); err == nil {
		f.Close()
		t.Error("a device was opened")
	}
}
