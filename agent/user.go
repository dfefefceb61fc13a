// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxUserFile bounds /etc/passwd and /etc/group of a container, in bytes.
const maxUserFile = 1 << 20

// resolveUser turns a user that is given by name ("app", "app:staff", "1000:staff", as an image's config has it) into
// numbers: those of the container's own /etc/passwd and /etc/group, with the groups that the user is a member of. The host
// cannot look there, as it does not have the image. A runtime on Linux would pass over the name and start the process as root.
func resolveUser(rootfs string, u *specs.User) error {
	if u.Username == "" {
		return nil
	}
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // opened for reading
	passwd, err := openUserFile(root, "etc/passwd")
	if err != nil {
		return err
	}
	defer passwd.Close()
	group, err := openUserFile(root, "etc/group")
	if err != nil {
		return err
	}
	defer group.Close()
	found, err := user.GetExecUser(u.Username, &user.ExecUser{}, passwd, group)
	if err != nil {
		return fmt.Errorf("%w: user %.100q: %w", ErrInvalidArgument, u.Username, err)
	}
	if found.Uid < 0 || found.Uid > math.MaxUint32-1 || found.Gid < 0 || found.Gid > math.MaxUint32-1 {
		return fmt.Errorf("%w: user %.100q has an id out of range", ErrInvalidArgument, u.Username)
	}
	if u.UID != 0 && u.UID != uint32(found.Uid) || u.GID != 0 && u.GID != uint32(found.Gid) {
		return fmt.Errorf("%w: user %.100q is %d:%d in the container, and the request says %d:%d", ErrInvalidArgument,
			u.Username, found.Uid, found.Gid, u.UID, u.GID)
	}
	u.UID, u.GID, u.Username = uint32(found.Uid), uint32(found.Gid), ""
	for _, g := range found.Sgids {
		if g >= 0 && g < math.MaxUint32 && !slices.Contains(u.AdditionalGids, uint32(g)) {
			u.AdditionalGids = append(u.AdditionalGids, uint32(g))
		}
	}
	return nil
}

// openUserFile opens a file that the container has written maybe: it cannot lead out of the root file system, block, or be
// without end. One that is not there is empty.
func openUserFile(root *os.Root, name string) (io.ReadCloser, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return os.Open(os.DevNull)
	}
	if err != nil {
		return nil, fmt.Errorf("look a user up: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !info.Mode().IsRegular() || info.Size() > maxUserFile {
		return nil, errors.Join(fmt.Errorf("%w: /%s of the container is no file of at most %d bytes", ErrInvalidArgument, name, maxUserFile), f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(f, maxUserFile), f}, nil
}
