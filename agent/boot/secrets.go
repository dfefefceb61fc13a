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
	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/keys/file"
)

// maxSecretFile bounds each file that holds a secret, in bytes.
const maxSecretFile = 1 << 20

// secrets reads everything that the build host put below layout.SecretsDir into memory and overwrites the files.
func (b *booter) secrets(context.Context) error {
	var err error
	if b.header, err = os.ReadFile(layout.DiskHeaderPath); err != nil {
		return err
	}
	if int64(len(b.header)) != b.guest.Config.Root.HeaderSize {
		return fmt.Errorf("pinned disk header has %d bytes, the boot config says %d", len(b.header), b.guest.Config.Root.HeaderSize)
	}
	if b.guest.RegistryCA, err = readOptional(layout.RegistryCAPath); err != nil {
		return err
	}
	if b.diskKey, err = readSecret(layout.DiskKeyPath); err != nil {
		return err
	}
	if n := len(b.diskKey.Bytes()); n != layout.DiskKeySize {
		return fmt.Errorf("disk key has %d bytes, want %d", n, layout.DiskKeySize)
	}
	if b.guest.RegistryAuth, err = readSecret(layout.RegistryAuthPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if b.guest.ImageKeys, err = file.Load(layout.ImageKeysDir); err != nil {
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

// readSecret reads a file straight into the one buffer that the Secret owns.
func readSecret(path string) (*keys.Secret, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxSecretFile {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", path, info.Size(), maxSecretFile)
	}
	s := keys.NewSecret(make([]byte, info.Size()))
	if _, err := f.ReadAt(s.Bytes(), 0); err != nil {
		s.Wipe()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
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
	if err != nil {
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
