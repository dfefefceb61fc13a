// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package share

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// errBusy is in the chain of the error of a Copy of a file of which another Copy is under way.
var errBusy = errors.New("the same file is being copied")

// File is a file, a folder or a symbolic link that the host copies in, or a part of a file: Kata's CopyFileRequest.
type File struct {
	// Path is where it goes, absolute and below the shared folder.
	Path string
	// Size is the size in bytes that the whole file will have. It has no meaning for folders and links.
	Size int64
	// Mode has the type (S_IFREG, S_IFDIR or S_IFLNK of stat(2); none is a regular file) and the permission bits,
	// including set-user-id, set-group-id and sticky, which are set as given: containers see their volumes with them.
	Mode uint32
	// DirMode are the permissions of folders that are missing on the way to Path. Only the lowest nine bits count: Kata's
	// Go shim sends Go's os.ModeDir along.
	DirMode uint32
	// UID and GID own it and the folder that it lies in. They are 32 bits without a sign that the protocol calls int32.
	UID, GID int32
	// Offset is where Data belongs in a regular file; 0 begins the file anew.
	Offset int64
	// Data are bytes of a regular file, or the target of a link.
	Data []byte
}

// transfer is a file that is begun and not complete. It has no name: nobody else can open it, and it vanishes when it is
// closed.
type transfer struct {
	file          *os.File
	size, written int64
	used          uint64
	busy          bool
}

// Copy puts a file, or the next part of one, into the folder. Missing folders on the way are made, and the last of them,
// new or not, is given to the file's owner. An existing folder stays where a folder is copied, and gets the mode and
// owner; a link or a complete file replaces a file or a link in one step, and fails where a folder is.
//
// A file larger than one Data comes in parts: the first with offset 0, and each next one no further than the last one's
// end. Those that are begun and not complete are bounded in number; of too many, the one unused for longest is
// forgotten, and its next part fails.
func (d *Dir) Copy(f File) error {
	rel, err := d.relative(f.Path)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if f.UID == -1 || f.GID == -1 { // chown(2) takes them for "unchanged"
		return fmt.Errorf("copy %.200q: owner %d:%d", f.Path, f.UID, f.GID)
	}
	switch kind := f.Mode & unix.S_IFMT; kind {
	case unix.S_IFREG, 0:
		err = d.copyRegular(rel, f)
	case unix.S_IFDIR:
		err = d.copyFolder(rel, f)
	case unix.S_IFLNK:
		err = d.copyLink(rel, f)
	default:
		err = fmt.Errorf("file type %#o", kind)
	}
	if err != nil {
		return fmt.Errorf("copy %.200q: %w", f.Path, err)
	}
	return nil
}

// parent opens the folder that rel lies in, which the caller closes. With give, missing folders are made and the last
// one, unless it is the shared folder itself, is given to f's owner.
func (d *Dir) parent(rel string, f File, give bool) (*os.File, error) {
	dir, err := openat(d.root, ".", unix.O_PATH|unix.O_DIRECTORY, beneath)
	if err != nil {
		return nil, err
	}
	folder := path.Dir(rel)
	if folder == "." {
		return dir, nil
	}
	for part := range strings.SplitSeq(folder, "/") {
		next, err := d.enter(dir, part, f.DirMode&0o777, give)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	if give {
		if err := chown(dir, f); err != nil {
			dir.Close()
			return nil, err
		}
	}
	return dir, nil
}

// enter opens a folder in dir. With create it is made if it is missing, with the mode as given in spite of the umask.
func (d *Dir) enter(dir *os.File, name string, mode uint32, create bool) (*os.File, error) {
	const flags, resolve = unix.O_PATH | unix.O_DIRECTORY, beneath | unix.RESOLVE_NO_XDEV
	next, err := openat(dir, name, flags, resolve)
	if !create || !errors.Is(err, unix.ENOENT) {
		return next, err
	}
	err = unix.Mkdirat(int(dir.Fd()), name, mode)
	if err != nil && !errors.Is(err, unix.EEXIST) { // another Copy may have made it meanwhile
		return nil, os.NewSyscallError("mkdirat", err)
	}
	made := err == nil
	next, err = openat(dir, name, flags, resolve)
	if err != nil || !made {
		return next, err
	}
	if err := chmod(next, mode); err != nil {
		next.Close()
		return nil, err
	}
	return next, nil
}

// copyFolder makes a folder, or takes the one that is there.
func (d *Dir) copyFolder(rel string, f File) error {
	if f.Offset != 0 || len(f.Data) != 0 {
		return fmt.Errorf("a folder with %d bytes of data at offset %d", len(f.Data), f.Offset)
	}
	parent, err := d.parent(rel, f, true)
	if err != nil {
		return err
	}
	defer parent.Close()
	name := path.Base(rel)
	dir, err := d.enter(parent, name, f.Mode&0o777, true)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		// A file or a link is there. Without AT_REMOVEDIR no folder is removed that might have come instead.
		if err := unix.Unlinkat(int(parent.Fd()), name, 0); err != nil {
			return os.NewSyscallError("unlinkat", err)
		}
		dir, err = d.enter(parent, name, f.Mode&0o777, true)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := chown(dir, f); err != nil {
		return err
	}
	return chmod(dir, f.Mode&0o7777)
}

// copyLink makes a symbolic link. Where it points to is not checked: nothing in the guest but a container follows it.
func (d *Dir) copyLink(rel string, f File) error {
	target := string(f.Data)
	if f.Offset != 0 || target == "" || len(target) > maxPath || strings.ContainsRune(target, 0) {
		return fmt.Errorf("symbolic link with a target of %d bytes at offset %d", len(target), f.Offset)
	}
	parent, err := d.parent(rel, f, true)
	if err != nil {
		return err
	}
	defer parent.Close()
	return publish(parent, path.Base(rel), func(temporary string) error {
		if err := unix.Symlinkat(target, int(parent.Fd()), temporary); err != nil {
			return os.NewSyscallError("symlinkat", err)
		}
		err := unix.Fchownat(int(parent.Fd()), temporary, int(f.UID), int(f.GID), unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return errors.Join(os.NewSyscallError("fchownat", err), unlink(parent, temporary))
		}
		return nil
	})
}

// copyRegular writes a part of a regular file, and puts the file in place with the last one.
func (d *Dir) copyRegular(rel string, f File) error {
	size, length := f.Size, int64(len(f.Data))
	if size < 0 || size > d.maxFile || length > maxData || f.Offset < 0 || f.Offset > size || length > size-f.Offset {
		return fmt.Errorf("%d bytes at offset %d of a file of %d bytes, where a part may have %d and a file %d",
			length, f.Offset, size, maxData, d.maxFile)
	}
	t, err := d.begin(rel, f)
	if err != nil {
		return err
	}
	done, err := d.write(t, f)
	if err == nil && done {
		err = d.finish(rel, t, f)
	}
	d.end(rel, t, done || err != nil)
	return err
}

// begin returns the transfer that f is a part of and marks it busy.
func (d *Dir) begin(rel string, f File) (*transfer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.transfers[rel]
	switch {
	case old != nil && old.busy:
		return nil, errBusy
	case f.Offset != 0 && old == nil:
		return nil, fmt.Errorf("offset %d of a file that was not begun", f.Offset)
	case f.Offset != 0 && (f.Size != old.size || f.Offset > old.written):
		return nil, fmt.Errorf("offset %d of %d bytes, after %d of %d", f.Offset, f.Size, old.written, old.size)
	case f.Offset != 0:
		old.busy = true
		return old, nil
	case old != nil:
		d.forget(rel)
	}
	if err := d.makeRoom(); err != nil {
		return nil, err
	}
	t := &transfer{size: f.Size, busy: true}
	d.transfers[rel] = t
	return t, nil
}

// makeRoom forgets the transfer that was unused for longest if there are as many as may be. Called with d.mu held.
func (d *Dir) makeRoom() error {
	if len(d.transfers) < maxTransfers {
		return nil
	}
	oldest := ""
	for rel, t := range d.transfers {
		if !t.busy && (oldest == "" || t.used < d.transfers[oldest].used) {
			oldest = rel
		}
	}
	if oldest == "" {
		return fmt.Errorf("%d files are being copied", maxTransfers)
	}
	d.forget(oldest)
	return nil
}

// forget drops a transfer, and with it what was written. Called with d.mu held.
func (d *Dir) forget(rel string) {
	d.transfers[rel].file.Close() // does nothing to the nil file of a transfer that failed to open one
	delete(d.transfers, rel)
}

// end ends the use of a transfer, and the transfer too if it is over.
func (d *Dir) end(rel string, t *transfer, over bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clock++
	t.used, t.busy = d.clock, false
	if over {
		d.forget(rel)
	}
}

// write writes a part to its file, and tells whether the file is complete.
func (d *Dir) write(t *transfer, f File) (bool, error) {
	if t.file == nil {
		fd, err := unix.Openat(int(d.root.Fd()), ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return false, fmt.Errorf("open a temporary file: %w", err)
		}
		t.file = os.NewFile(uintptr(fd), "shared file")
	}
	if _, err := t.file.WriteAt(f.Data, f.Offset); err != nil {
		return false, err
	}
	t.written = max(t.written, f.Offset+int64(len(f.Data)))
	return t.written == t.size, nil
}

// finish gives a complete file its owner, mode and name.
func (d *Dir) finish(rel string, t *transfer, f File) error {
	if err := chown(t.file, f); err != nil {
		return err
	}
	if err := chmod(t.file, f.Mode&0o7777); err != nil {
		return err
	}
	parent, err := d.parent(rel, f, true)
	if err != nil {
		return err
	}
	defer parent.Close()
	return publish(parent, path.Base(rel), func(temporary string) error {
		err := unix.Linkat(unix.AT_FDCWD, procPath(t.file), int(parent.Fd()), temporary, unix.AT_SYMLINK_FOLLOW)
		return os.NewSyscallError("linkat", err)
	})
}

// publish lets a file appear in a folder in place of what has its name: it is made under a name that nobody else uses,
// and then renamed. The kernel refuses to rename it over a folder.
func publish(dir *os.File, name string, create func(temporary string) error) error {
	temporary := reserved + rand.Text()
	if err := create(temporary); err != nil {
		return err
	}
	if err := unix.Renameat(int(dir.Fd()), temporary, int(dir.Fd()), name); err != nil {
		return errors.Join(os.NewSyscallError("renameat", err), unlink(dir, temporary))
	}
	return nil
}

func unlink(dir *os.File, name string) error {
	return os.NewSyscallError("unlinkat", unix.Unlinkat(int(dir.Fd()), name, 0))
}

// chown gives an open file its owner; it may be open with O_PATH. It comes before chmod, because it clears set-id bits.
func chown(file *os.File, f File) error {
	err := unix.Fchownat(int(file.Fd()), "", int(f.UID), int(f.GID), unix.AT_EMPTY_PATH)
	return os.NewSyscallError("fchownat", err)
}

// chmod sets an open file's permissions; it may be open with O_PATH, where fchmod(2) would fail.
func chmod(file *os.File, mode uint32) error {
	return os.NewSyscallError("chmod", unix.Chmod(procPath(file), mode))
}
