// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys/file"
)

// maxSecretFile bounds each file that holds a secret, in bytes.
const maxSecretFile = 1 << 20

// secrets reads what the agent keeps in memory and then overwrites every file below layout.SecretsDir, the disk key's
// among them.
func (b *booter) secrets(context.Context) error {
	var err error
	if b.guest.RegistryCA, err = readOptional(layout.RegistryCAPath); err != nil {
		return err
	}
	if b.guest.RegistryAuth, err = readSecret(layout.RegistryAuthPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if b.guest.ImageKeys, err = file.Load(layout.ImageKeysDir); err != nil {
		return err
	}
	if b.guest.Secrets, err = file.Load(layout.ResourcesDir); err != nil {
		return err
	}
	return wipeTree(layout.SecretsDir)
}

func readOptional(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// wipeTree overwrites every file below dir in place, then removes it. Removing alone is not enough: the pages of an
// initramfs file are the file, and freed pages keep their content unless the kernel runs with init_on_free=1.
func wipeTree(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return wipeFile(path)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("wipe secrets: %w", err)
	}
	return os.RemoveAll(dir)
}

func wipeFile(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, info.Size()), 0)
	return err
}
