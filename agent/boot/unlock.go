// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"fmt"
	"os"

	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
)

// UnlockDisk reads disk key and pinned header from the initramfs, wipes the key's file, and has open map the disk's
// payload; it returns what open does, the device of the plaintext.
//
// It is the whole work of a process of its own (see Volumes.Unlock). Key derivation and LUKS libraries copy the key
// where nobody can wipe it: freed objects of the Go heap keep their content until they are used again. The kernel
// clears the memory of a process that has ended (init_on_free=1), so no copy reaches the process that serves.
func UnlockDisk(device string, open func(device string, header, passphrase []byte, root layout.Root) (string, error)) (string, error) {
	config, err := readConfig()
	if err != nil {
		return "", err
	}
	header, err := readHeader(config)
	if err != nil {
		return "", err
	}
	key, err := readSecret(layout.DiskKeyPath)
	if err != nil {
		return "", fmt.Errorf("read disk key: %w", err)
	}
	defer key.Wipe()
	if err := wipeFile(layout.DiskKeyPath); err != nil {
		return "", fmt.Errorf("wipe disk key: %w", err)
	}
	if n := len(key.Bytes()); n != layout.DiskKeySize {
		return "", fmt.Errorf("disk key has %d bytes, want %d", n, layout.DiskKeySize)
	}
	return open(device, header, key.Bytes(), config.Root)
}

func readConfig() (*layout.BootConfig, error) {
	f, err := os.Open(layout.BootConfigPath)
	if err != nil {
		return nil, fmt.Errorf("open boot config: %w", err)
	}
	defer f.Close()
	return layout.ParseBootConfig(f)
}

// readHeader reads the pinned header of the root disk.
func readHeader(c *layout.BootConfig) ([]byte, error) {
	header, err := os.ReadFile(layout.DiskHeaderPath)
	if err != nil {
		return nil, fmt.Errorf("read pinned disk header: %w", err)
	}
	if int64(len(header)) != c.Root.HeaderSize {
		return nil, fmt.Errorf("pinned disk header has %d bytes, the boot config says %d", len(header), c.Root.HeaderSize)
	}
	return header, nil
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
