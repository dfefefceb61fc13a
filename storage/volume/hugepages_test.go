// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package volume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

const pageSize = 2 << 20

// fakePools are pools of a kernel that keeps base pages and has memory for limit.
func fakePools(t *testing.T, p *pools, base string, limit int) {
	t.Helper()
	name := p.file(pageSize)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(base+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	p.write = func(file string, data []byte) error {
		if file != name {
			t.Errorf("wrote to %s", file)
		}
		n, err := strconv.Atoi(string(data))
		if err != nil {
			t.Error(err)
		}
		return os.WriteFile(file, []byte(strconv.Itoa(min(n, limit))+"\n"), 0o600)
	}
}

func TestPools(t *testing.T) {
	m, f, dir := newFake(t)
	fakePools(t, m.pools, "2", 10)
	add := func(name, size string) error {
		return m.Add(t.Context(), name, Storage{
			Driver: DriverEphemeral, FSType: fsHuge, MountPoint: dir + "/sandbox/ephemeral/" + name, Options: []string{"pagesize=2097152,size=" + size}, Transient: true,
		})
	}
	expectPages := func(want uint64, err error) {
		t.Helper()
		if got, readErr := m.pools.read(pageSize); errors.Join(err, readErr) != nil || got != want {
			t.Errorf("%d pages, want %d: %v, %v", got, want, err, readErr)
		}
	}
	expectPages(2, add("one", "2097152")) // there were enough
	expectPages(4, add("three", "6291456"))
	if err := add("seven", "14680064"); err == nil {
		t.Error("more pages than there is memory for")
	}
	expectPages(4, nil)
	expectPages(10, add("six", "12582912"))
	f.fail["mount hugetlbfs sandbox/ephemeral/none hugetlbfs pagesize=2097152,size=0"] = unix.EINVAL
	if err := add("none", "0"); err == nil {
		t.Error("no pages")
	}
	expectPages(4, m.Release(t.Context(), "six"))
	f.fail["mount hugetlbfs sandbox/ephemeral/four hugetlbfs pagesize=2097152,size=8388608"] = unix.ENOMEM
	if err := add("four", "8388608"); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("failed mount: %v", err)
	}
	expectPages(4, nil) // given back
	expectPages(3, m.Release(t.Context(), "one"))
	expectPages(2, m.Release(t.Context(), "three"))
	expectPages(2, m.Release(t.Context(), "three"))
	if err := m.pools.reserve("x", 1<<30, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown page size: %v", err)
	}
	if err := m.pools.reserve("x", pageSize, maxPages+1); !errors.Is(err, ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
}
