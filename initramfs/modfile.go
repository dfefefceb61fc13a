// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Limits of the files in a kernel's module folder, in bytes.
const (
	maxModuleSize    = 128 << 20
	maxModuleIndex   = 16 << 20
	maxModuleWindow  = 128 << 20
	moduleFileSuffix = ".ko"
)

// moduleDir is an unpacked lib/modules/VERSION folder.
type moduleDir struct {
	path    string
	root    *os.Root
	index   map[string]string // name -> path in the folder, without compression suffix
	builtin map[string]bool
}

// openModuleDir opens a folder and reads its modules.order and modules.builtin. The caller closes root.
func openModuleDir(dir string) (*moduleDir, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open modules folder: %w", err)
	}
	d := &moduleDir{path: dir, root: root, index: make(map[string]string), builtin: make(map[string]bool)}
	err = d.list("modules.order", func(p string) { d.index[moduleNameOf(p)] = p })
	if err == nil {
		err = d.list("modules.builtin", func(p string) { d.builtin[moduleNameOf(p)] = true })
	}
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("%s is not the modules folder of a kernel (lib/modules/VERSION): %w", dir, err)
	}
	return d, nil
}

func moduleNameOf(p string) string {
	return ModuleName(strings.TrimSuffix(path.Base(p), moduleFileSuffix))
}

// list calls add for each line of an index file: the path of a module, ending in .ko however the file is compressed.
func (d *moduleDir) list(name string, add func(string)) error {
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	sc := bufio.NewScanner(io.LimitReader(f, maxModuleIndex))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" {
			continue
		}
		if !filepath.IsLocal(line) || !strings.HasSuffix(line, moduleFileSuffix) {
			return fmt.Errorf("%s: line %q is not the path of a module", name, line)
		}
		add(line)
	}
	return sc.Err()
}

// read returns the file name and the decompressed bytes of a module that the index lists.
func (d *moduleDir) read(p string) (string, []byte, error) {
	for _, suffix := range []string{"", ".xz", ".zst"} {
		f, err := d.root.Open(p + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, err
		}
		defer f.Close()
		data, err := decompress(f, suffix)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", p+suffix, err)
		}
		return path.Base(p), data, nil
	}
	return "", nil, fmt.Errorf("modules.order lists %s, but there is no such file (nor with .xz or .zst)", p)
}

// decompress reads a module whose file name ends in suffix. What is appended to the module (its signature) stays.
func decompress(r io.Reader, suffix string) ([]byte, error) {
	switch suffix {
	case ".xz":
		z, err := xz.NewReader(bufio.NewReader(r))
		if err != nil {
			return nil, fmt.Errorf("decompress: %w", err)
		}
		r = z
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxModuleWindow))
		if err != nil {
			return nil, fmt.Errorf("decompress: %w", err)
		}
		defer z.Close()
		r = z
	}
	data, err := io.ReadAll(io.LimitReader(r, maxModuleSize+1))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(data) > maxModuleSize {
		return nil, fmt.Errorf("the module has more than %d bytes", maxModuleSize)
	}
	return data, nil
}
