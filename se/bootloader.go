// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Bootloader is the first code of an image, which s390-tools bring along.
type Bootloader struct {
	// Stage3a starts at power-on and calls the ultravisor; it ends with room for its arguments.
	Stage3a []byte
	// Stage3b starts inside the protected guest, moves the kernel into place and starts it; it ends with room for its
	// arguments, too. It relocates itself.
	Stage3b []byte
}

// BootloaderDirs are the folders where s390-tools keep the files of a bootloader.
func BootloaderDirs() []string {
	return []string{"/usr/share/s390-tools/pvimg", "/usr/share/s390-tools/genprotimg"}
}

// ErrNoBootloader means that no folder holds a bootloader.
var ErrNoBootloader = errors.New("no boot code of Secure Execution (stage3a.bin, stage3b_reloc.bin)")

// LoadBootloader reads a bootloader from a folder; "" means the first of BootloaderDirs that has one.
func LoadBootloader(dir string) (*Bootloader, error) {
	dirs := []string{dir}
	if dir == "" {
		dirs = BootloaderDirs()
	}
	for _, d := range dirs {
		a, err := readStage(filepath.Join(d, "stage3a.bin"), minStage3aSize)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		b, err := readStage(filepath.Join(d, "stage3b_reloc.bin"), stage3bArgsSize)
		if err != nil {
			return nil, err
		}
		return &Bootloader{Stage3a: a, Stage3b: b}, nil
	}
	return nil, fmt.Errorf("%w in %v", ErrNoBootloader, dirs)
}

func readStage(path string, minSize int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxStageSize+1))
	if err != nil {
		return nil, err
	}
	return data, checkStage(path, data, minSize)
}

func checkStage(name string, data []byte, minSize int) error {
	if len(data) < minSize || len(data) > maxStageSize {
		return fmt.Errorf("%s has %d bytes, not %d to %d", name, len(data), minSize, maxStageSize)
	}
	return nil
}
