// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/keys"
)

func write(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoadAndGet(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "default/test-key/1", []byte("one"))
	write(t, dir, "default/test-key/2.bin", bytes.Repeat([]byte{0xa5}, 32))
	if err := os.MkdirAll(filepath.Join(dir, "empty/folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.Len() != 2 {
		t.Errorf("%d keys, want 2", s.Len())
	}
	got, err := s.Get(t.Context(), "kbs:///default/test-key/1")
	if err != nil || string(got.Bytes()) != "one" {
		t.Fatalf("Get: %v", err)
	}
	got.Wipe() // the caller's copy, not the store's
	if got, err = s.Get(t.Context(), "kbs:///default/test-key/1"); err != nil || string(got.Bytes()) != "one" {
		t.Errorf("after wiping a copy, Get: %v", err)
	}
	if _, err := s.Get(t.Context(), "kbs:///default/test-key/3"); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("a key that is not there: %v, want ErrNotFound", err)
	}
	if _, err := s.Get(t.Context(), "kbs:///default/../default/test-key/1"); err == nil || errors.Is(err, keys.ErrNotFound) {
		t.Errorf("a malformed URI: %v, want an error that is not ErrNotFound", err)
	}
}

func TestCloseWipes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a/b/c", []byte("key bytes"))
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	held := s.keys["kbs:///a/b/c"].Bytes()
	s.Close()
	s.Close()
	if !bytes.Equal(held, make([]byte, len(held))) || len(held) == 0 {
		t.Errorf("after Close the key is %q", held)
	}
	if _, err := s.Get(t.Context(), "kbs:///a/b/c"); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("Get after Close: %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		fill func(t *testing.T, dir string)
		want string
	}{
		{"file at the top", func(t *testing.T, d string) { write(t, d, "key", []byte("k")) }, "repository/type/tag"},
		{"file at the second level", func(t *testing.T, d string) { write(t, d, "a/key", []byte("k")) }, "repository/type/tag"},
		{"too deep", func(t *testing.T, d string) { write(t, d, "a/b/c/d", []byte("k")) }, "folder where a key"},
		{"hidden file", func(t *testing.T, d string) { write(t, d, "a/b/.key", []byte("k")) }, "not a resource name"},
		{"space", func(t *testing.T, d string) { write(t, d, "a/b/my key", []byte("k")) }, "not a resource name"},
		{"empty key", func(t *testing.T, d string) { write(t, d, "a/b/c", nil) }, "size 0"},
		{"large key", func(t *testing.T, d string) { write(t, d, "a/b/c", make([]byte, MaxKeySize+1)) }, "size 65537"},
		{"symbolic link", func(t *testing.T, d string) {
			write(t, d, "a/b/c", []byte("k"))
			if err := os.Symlink("c", filepath.Join(d, "a/b/d")); err != nil {
				t.Fatal(err)
			}
		}, "neither a file nor a folder"},
		{"too many keys", func(t *testing.T, d string) {
			for i := range MaxKeys + 1 {
				write(t, d, fmt.Sprintf("a/b/%d", i), []byte("k"))
			}
		}, "more than 1024 keys"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.fill(t, dir)
			_, err := Load(dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Load: %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestLoadWithoutFolder(t *testing.T) {
	s, err := Load(filepath.Join(t.TempDir(), "absent"))
	if err != nil || s.Len() != 0 {
		t.Fatalf("Load of an absent folder: %v", err)
	}
	f := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(f); err == nil {
		t.Error("Load of a file that is no folder succeeded")
	}
}
