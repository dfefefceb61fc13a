// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package share keeps the folder of files that the host copies into the guest, Kata's
// /run/kata-containers/shared/containers: configuration maps, secrets, hosts, resolv.conf. Containers get parts of it as
// bind mounts. It is a leaf, and knows nothing of containers or of the wire.
//
// The host chooses names, contents and symbolic links, and containers write to some of the files. Therefore
//   - paths are resolved by openat2 below the folder, never through a symbolic link, and for writing never into another
//     mount. Links are made as the host wishes (a configuration map has ..data -> ..2026_01_01), but only containers
//     follow them, inside their own root. Kata's agent follows links within the folder; its shims send no such path.
//   - a folder is never removed or replaced. What was once found to be a folder below the root (the source of a bind
//     mount, or a volume) stays one, and cannot become a link to somewhere else.
//   - a file appears under its name when it is complete, not before.
package share

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// defaultMaxFile is the size in bytes of the largest file that is accepted if Open is not told another: 1 GiB. The
// folder lies in memory, and a shim reads a file whole before it sends it.
const defaultMaxFile = 1 << 30

// maxData is how many bytes one Copy may carry: the size of the largest message of the agent protocol.
const maxData = 4 << 20

const (
	maxPath  = 4095 // PATH_MAX without its zero byte
	maxName  = 255  // NAME_MAX
	maxDepth = 128
	// maxTransfers bounds the files that are begun and not complete, each of which holds an open file.
	maxTransfers = 128
	// reserved begins the names that files have between being linked into a folder and being renamed. The host may not
	// use it.
	reserved = ".cloister-share-"
	// beneath is how every path is resolved.
	beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
)

// ErrPath is in the chain of errors about a path that is no path of a file below the folder.
var ErrPath = errors.New("not an acceptable path below the shared folder")

// Dir is a shared folder. Its methods may be called concurrently.
type Dir struct {
	path    string
	root    *os.File
	maxFile int64

	mu        sync.Mutex
	transfers map[string]*transfer
	clock     uint64 // counts uses of transfers, to find the least recently used
}

// Open makes the folder at root, an absolute path that the caller trusts, if it is missing, and holds on to it: should
// another come to lie at the path later, it is not used. Files larger than maxFile bytes are refused; 0 is
// defaultMaxFile.
func Open(root string, maxFile int64) (*Dir, error) {
	if !path.IsAbs(root) || path.Clean(root) != root || root == "/" {
		return nil, fmt.Errorf("open shared folder %q: not an absolute, clean path", root)
	}
	if maxFile < 0 {
		return nil, fmt.Errorf("open shared folder: largest file has %d bytes", maxFile)
	}
	if maxFile == 0 {
		maxFile = defaultMaxFile
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("open shared folder: %w", err)
	}
	f, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open shared folder: %w", err)
	}
	return &Dir{path: root, root: f, maxFile: maxFile, transfers: map[string]*transfer{}}, nil
}

// Close forgets unfinished files and lets go of the folder, which keeps its contents. No other method may be called
// during Close or after it.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.transfers {
		t.file.Close()
	}
	clear(d.transfers)
	return d.root.Close()
}

// relative checks a path and returns it without the folder's. It must be absolute and clean (so that a file has one
// name), and below the folder.
func (d *Dir) relative(name string) (string, error) {
	rel, ok := strings.CutPrefix(name, d.path+"/")
	switch {
	case len(name) > maxPath:
		return "", fmt.Errorf("%w: %d bytes long", ErrPath, len(name))
	case !ok || rel == "" || path.Clean(name) != name || strings.ContainsRune(name, 0):
		return "", fmt.Errorf("%w: %.200q", ErrPath, name)
	}
	parts := strings.Split(rel, "/")
	if len(parts) > maxDepth {
		return "", fmt.Errorf("%w: %d folders deep", ErrPath, len(parts))
	}
	for _, part := range parts {
		if len(part) > maxName || strings.HasPrefix(part, reserved) {
			return "", fmt.Errorf("%w: name %.200q", ErrPath, part)
		}
	}
	return rel, nil
}

// OpenBeneath opens an existing file or folder below the shared folder as the source of a bind mount: with O_PATH, so
// that nothing is read and /proc/self/fd/N names exactly what was checked. A path with a symbolic link in it, and what
// is neither a regular file nor a folder, is refused: a link made by the host would lead the mount to files of the guest.
func (d *Dir) OpenBeneath(name string) (*os.File, error) {
	rel, err := d.relative(name)
	if err != nil {
		return nil, fmt.Errorf("open shared file: %w", err)
	}
	f, err := openat(d.root, rel, unix.O_PATH, beneath)
	if err != nil {
		return nil, fmt.Errorf("open shared file %.200q: %w", name, err)
	}
	if kind, err := kindOf(f); err != nil || kind != unix.S_IFREG && kind != unix.S_IFDIR {
		f.Close()
		return nil, fmt.Errorf("open shared file %.200q: %w", name, errors.Join(err, errors.New("neither a regular file nor a folder")))
	}
	return f, nil
}

// openat opens a path relative to a folder by openat2.
func openat(dir *os.File, rel string, flags, resolve uint64) (*os.File, error) {
	for {
		fd, err := unix.Openat2(int(dir.Fd()), rel, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("openat2", err)
		}
		return os.NewFile(uintptr(fd), rel), nil
	}
}

// kindOf returns the type bits of an open file's mode.
func kindOf(f *os.File) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Mode & unix.S_IFMT, nil
}

// procPath names an open file, whatever has become of its path.
func procPath(f *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}
