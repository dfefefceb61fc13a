// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package share

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ReadHead returns the first bytes, at most limit, of a regular file below the shared folder, such as the message that a
// container leaves for its end, of which Kata returns the first 4096 bytes. A link, FIFO or device is refused by
// OpenBeneath without being opened, and so can neither block nor do anything; a folder fails to be read. A missing file
// is fs.ErrNotExist.
func (d *Dir) ReadHead(name string, limit int64) ([]byte, error) {
	f, err := d.OpenBeneath(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := os.OpenFile(procPath(f), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("read shared file %.200q: %w", name, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit))
	if err != nil {
		return nil, fmt.Errorf("read shared file %.200q: %w", name, err)
	}
	return data, nil
}
