// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Numbers of the FUSE protocol, see linux/fuse.h.
const (
	fuseGetattr, fuseForget, fuseInit, fuseBatchForget = 3, 2, 26, 42

	fuseMajor, fuseMinor = 7, 31
)

type fuseIn struct {
	Len, Opcode          uint32
	Unique, Node         uint64
	UID, GID, PID, Extra uint32
}

type fuseOut struct {
	Len    uint32
	Error  int32
	Unique uint64
}

type fuseInitOut struct {
	Major, Minor, Readahead, Flags uint32
	Background, Congestion         uint16
	MaxWrite, TimeGran             uint32
	MaxPages, MapAlignment         uint16
	Unused                         [8]uint32
}

type fuseAttrOut struct {
	Valid                                            uint64
	ValidNsec, Dummy                                 uint32
	Ino, Size, Blocks, Atime, Mtime, Ctime           uint64
	Times                                            [3]uint32
	Mode, Nlink, UID, GID, Rdev, BlockSize, FuseFlag uint32
}

// hungFUSE is a file system whose server takes requests and, once silent, answers none. Who has asked then waits in the
// kernel and cannot even be killed.
type hungFUSE struct {
	dir    string
	silent atomic.Bool
	asked  chan struct{} // gets a token when a request was left without an answer
	ended  chan struct{}
	gone   atomic.Bool
}

// mountFUSE mounts one, or skips the test where the kernel has no FUSE.
func mountFUSE(t *testing.T, dir string) *hungFUSE {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		if inGuest() {
			t.Fatalf("the test guest has no FUSE: %v", err)
		}
		t.Skipf("/dev/fuse cannot be opened: %v", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("hung", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	f := &hungFUSE{dir: dir, asked: make(chan struct{}, 1), ended: make(chan struct{})}
	go func() {
		defer close(f.ended)
		defer unix.Close(fd)
		f.serve(fd)
	}()
	t.Cleanup(f.abort)
	return f
}

func (f *hungFUSE) serve(fd int) {
	buf := make([]byte, 1<<20)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return // unmounted
		}
		var in fuseIn
		if _, err := binary.Decode(buf[:n], binary.NativeEndian, &in); err != nil {
			return
		}
		switch {
		case in.Opcode == fuseForget || in.Opcode == fuseBatchForget:
		case in.Opcode == fuseInit:
			answer(fd, in, 0, fuseInitOut{Major: fuseMajor, Minor: fuseMinor, MaxWrite: 4096})
		case f.silent.Load():
			select {
			case f.asked <- struct{}{}:
			default:
			}
		case in.Opcode == fuseGetattr:
			answer(fd, in, 0, fuseAttrOut{Ino: in.Node, Mode: unix.S_IFDIR | 0o755, Nlink: 2, BlockSize: 4096})
		default:
			answer(fd, in, unix.ENOSYS, nil)
		}
	}
}

func answer(fd int, in fuseIn, errno unix.Errno, body any) {
	var data bytes.Buffer
	if body != nil {
		_ = binary.Write(&data, binary.NativeEndian, body) // a struct of fixed size
	}
	var message bytes.Buffer
	_ = binary.Write(&message, binary.NativeEndian, fuseOut{Len: uint32(16 + data.Len()), Error: -int32(errno), Unique: in.Unique})
	message.Write(data.Bytes())
	_, _ = unix.Write(fd, message.Bytes()) // fails if who has asked is gone
}

// abort ends the file system, and with it every wait for an answer.
func (f *hungFUSE) abort() {
	if f.gone.Swap(true) {
		return
	}
	_ = unix.Unmount(f.dir, unix.MNT_FORCE)  // which ends the connection but fails where it is in use
	_ = unix.Unmount(f.dir, unix.MNT_DETACH) // fails where the former did it all
	<-f.ended
}

func TestFUSEStandIn(t *testing.T) {
	crunPath(t)
	dir := t.TempDir()
	f := mountFUSE(t, dir)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		t.Fatalf("%v, %v", info, err)
	}
	f.silent.Store(true)
	stuck := make(chan error)
	go func() {
		_, err := os.Stat(dir)
		stuck <- err
	}()
	<-f.asked
	f.abort()
	if err := <-stuck; err == nil {
		t.Error("an answer came")
	}
}
