// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// userRootfs is a root file system with users.
func userRootfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbad:x:-1:0::/:\nbroken\n",
		"etc/group":  "root:x:0:\napp:x:1001:\nstaff:x:50:app,other\nwheel:x:51:app\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestResolveUser(t *testing.T) {
	t.Parallel()
	rootfs := userRootfs(t)
	for name, row := range map[string]struct {
		in, out specs.User
		want    string
	}{
		"numbers":            {in: specs.User{UID: 7, GID: 8}, out: specs.User{UID: 7, GID: 8}},
		"name":               {in: specs.User{Username: "app"}, out: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{50, 51}}},
		"name and group":     {in: specs.User{Username: "app:staff"}, out: specs.User{UID: 1000, GID: 50}},
		"name and number":    {in: specs.User{Username: "app:7"}, out: specs.User{UID: 1000, GID: 7}},
		"number as text":     {in: specs.User{Username: "1000"}, out: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{50, 51}}},
		"unknown numbers":    {in: specs.User{Username: "5:6"}, out: specs.User{UID: 5, GID: 6}},
		"more groups":        {in: specs.User{Username: "app", AdditionalGids: []uint32{9, 50}}, out: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{9, 50, 51}}},
		"name and its id":    {in: specs.User{Username: "app", UID: 1000, GID: 1001}, out: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{50, 51}}},
		"name and other id":  {in: specs.User{Username: "app", UID: 1}, want: "the request says 1:0"},
		"unknown name":       {in: specs.User{Username: "nobody"}, want: `user "nobody"`},
		"unknown group":      {in: specs.User{Username: "app:none"}, want: `user "app:none"`},
		"negative":           {in: specs.User{Username: "-1"}, want: `user "-1"`},
		"negative in passwd": {in: specs.User{Username: "bad"}, want: `user "bad"`},
		"too large":          {in: specs.User{Username: "4294967295"}, want: "4294967295"},
	} {
		err := resolveUser(rootfs, &row.in)
		switch {
		case row.want != "":
			if !errors.Is(err, ErrInvalidArgument) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%s: error %v, want %q", name, err, row.want)
			}
		case err != nil || !reflect.DeepEqual(row.in, row.out):
			t.Errorf("%s: %+v, %v; want %+v", name, row.in, err, row.out)
		}
	}
}

// The files are the container's, which may have made them so that whoever reads them leaves it, waits or runs out of
// memory.
func TestResolveUserOfHostileContainer(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(path string) error{
		"pipe":          func(path string) error { return unix.Mkfifo(path, 0o600) },
		"folder":        func(path string) error { return os.Mkdir(path, 0o700) },
		"link out":      func(path string) error { return os.Symlink("../../../../../../../../etc/passwd", path) },
		"absolute link": func(path string) error { return os.Symlink("/etc/passwd", path) },
		"loop":          func(path string) error { return os.Symlink("passwd", path) },
		"large": func(path string) error {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(path, maxUserFile+1)
		},
	} {
		rootfs := userRootfs(t)
		path := filepath.Join(rootfs, "etc/passwd")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if err := resolveUser(rootfs, &specs.User{Username: "root"}); err == nil {
			t.Errorf("%s: a user was found", name)
		}
	}
	if err := resolveUser(t.TempDir(), &specs.User{Username: "app"}); !errors.Is(err, ErrInvalidArgument) {
		t.Errorf("no files: %v", err)
	}
}
