// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/qemu"
)

// diskKeyIsGone searches the guest's whole memory for the key that unlocked the root disk: once the agent serves, no
// copy may be left, whoever reads the memory then. The image key, which the agent keeps, is the control that the search
// finds what is there.
func diskKeyIsGone(t *testing.T, w *world, vm *qemu.VM) {
	t.Helper()
	diskKey := fromInitramfs(t, filepath.Join(w.guest, guestimage.InitramfsFile), layout.DiskKeyPath)
	if len(diskKey) != layout.DiskKeySize {
		t.Fatalf("the initramfs has a disk key of %d bytes", len(diskKey))
	}
	imageKey, err := os.ReadFile(w.imageKey)
	must(t, err)
	counts, err := searchMemory(vm.Pid(), diskKey, imageKey)
	must(t, err)
	if counts[1] == 0 {
		t.Error("the control, the image key, is not found: the search is blind")
	}
	if counts[0] != 0 {
		t.Errorf("%d copies of the disk key in the guest's memory", counts[0])
	}
}

// fromInitramfs returns the content of one file of an initramfs.
func fromInitramfs(t *testing.T, image, path string) []byte {
	t.Helper()
	f, err := os.Open(image)
	must(t, err)
	defer f.Close()
	r, closer, err := initramfs.NewImageReader(f)
	must(t, err)
	defer closer.Close()
	for {
		e, err := r.Next()
		if err != nil {
			t.Fatalf("no %s in the initramfs: %v", path, err)
		}
		if "/"+strings.TrimPrefix(e.Path, "/") == path {
			data, err := io.ReadAll(r)
			must(t, err)
			return data
		}
	}
}

// searchMemory counts how often each pattern stands in the memory of a QEMU guest: the memfd that backs it.
func searchMemory(pid int, patterns ...[]byte) ([]int, error) {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil, err
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !strings.Contains(target, "memfd:") {
			continue
		}
		f, err := os.Open(fd)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return search(f, patterns)
	}
	return nil, errors.New("QEMU has no memfd: how else is the guest's memory backed?")
}

func search(r io.Reader, patterns [][]byte) ([]int, error) {
	counts := make([]int, len(patterns))
	longest := 0
	for _, p := range patterns {
		longest = max(longest, len(p))
	}
	buf := make([]byte, 0, 8<<20)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return nil, err
		}
		keep := min(len(buf), longest-1)
		for i, p := range patterns {
			counts[i] += bytes.Count(buf, p)
			if !last { // what lies whole in the overlap is counted again with the next block
				counts[i] -= bytes.Count(buf[len(buf)-keep:], p)
			}
		}
		if last {
			return counts, nil
		}
		buf = append(buf[:0], buf[len(buf)-keep:]...)
	}
}

func TestSearchCountsAcrossBlocks(t *testing.T) {
	data := make([]byte, 20<<20)
	pattern, short := []byte("0123456789abcdef"), []byte("fedc")
	for _, at := range []int{0, 8<<20 - 7, 16<<20 - 30, len(data) - len(pattern)} {
		copy(data[at:], pattern)
	}
	copy(data[8<<20-20:], short)
	got, err := search(bytes.NewReader(data), [][]byte{pattern, short})
	if err != nil || got[0] != 4 || got[1] != 1 {
		t.Errorf("found %v, %v; want 4 and 1", got, err)
	}
}
