// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// RemoveEmpty removes one group, unless it has processes or groups in it; then it is an error. A group that is gone is
// none.
func (h Hierarchy) RemoveEmpty(path string) error {
	rel, err := relative(path)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(h.root())
	if err != nil {
		return fmt.Errorf("open cgroup root: %w", err)
	}
	defer func() { _ = root.Close() }()
	if err := root.Remove(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}
