// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package luks

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sealedFile returns a file in memory that holds data and that nobody can change any more.
func sealedFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		return nil, errors.Join(fmt.Errorf("fill memory file: %w", err), f.Close())
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal memory file: %w", os.NewSyscallError("fcntl", err)), f.Close())
	}
	return f, nil
}
