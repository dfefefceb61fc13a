// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/debian"
)

func checkArch(arch string) error {
	if !slices.Contains(initramfs.Architectures(), arch) {
		return fmt.Errorf("architecture %q is none of %v", arch, initramfs.Architectures())
	}
	return nil
}

// Bed says where everything lies. All paths are absolute and below the cache folder.
type Bed struct {
	// Arch is the guest's architecture.
	Arch string `json:"arch"`
	// QEMUDir is an unpacked QEMU: binaries in usr/bin, firmware in usr/share/qemu.
	QEMUDir string `json:"qemu_dir"`
	// VsockBackend is the vhost-device-vsock binary.
	VsockBackend string `json:"vsock_backend"`
	// Kernel is the kernel image to boot.
	Kernel string `json:"kernel"`
	// KernelVersion is what uname -r says in the guest.
	KernelVersion string `json:"kernel_version"`
	// ModulesDir is the kernel's folder lib/modules/VERSION.
	ModulesDir string `json:"modules_dir"`
	// Crun is a static crun for the guest.
	Crun string `json:"crun"`
	// Pause is the static pause process for the guest.
	Pause string `json:"pause"`
	// Busybox is a static busybox for the guest; only demo and test containers hold it.
	Busybox string `json:"busybox"`
	// Bootloader is the folder with the first code of a Secure Execution image (stage3a.bin, stage3b_reloc.bin); "" where
	// the architecture has none.
	Bootloader string `json:"bootloader,omitempty"`
	// Registry is Debian's docker-registry for the build host.
	Registry string `json:"registry"`
	// Packages lists every Debian package used, with its version and sha256.
	Packages []debian.Package `json:"packages"`
}

// DefaultCacheDir returns the cache folder that Setup and Load use when none is given: cloister below the user's cache
// folder (XDG_CACHE_HOME, or else .cache in the home folder).
func DefaultCacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache folder: %w", err)
	}
	return filepath.Join(dir, "cloister"), nil
}

func cacheDir(dir string) (string, error) {
	if dir == "" {
		return DefaultCacheDir()
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find cache folder: %w", err)
	}
	return abs, nil
}

func bedPath(cache, arch string) string { return filepath.Join(cache, "bed-"+arch+".json") }

// Load returns the bed that an earlier Setup left in the cache folder ("" is the default one), without fetching or
// building anything. The error is fs.ErrNotExist where there is none.
func Load(cache, arch string) (*Bed, error) {
	if err := checkArch(arch); err != nil {
		return nil, fmt.Errorf("load test bed: %w", err)
	}
	cache, err := cacheDir(cache)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(bedPath(cache, arch))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("load test bed of %s: run 'cloister setup --arch %s' first: %w", arch, arch, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("load test bed of %s: %w", arch, err)
	}
	var b Bed
	if err := json.Unmarshal(data, &b); err != nil {
		return nil, fmt.Errorf("load test bed of %s from %s: %w", arch, bedPath(cache, arch), err)
	}
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("load test bed of %s: run 'cloister setup --arch %s' again: %w", arch, arch, err)
	}
	return &b, nil
}

// check reports what is missing on the disk.
func (b *Bed) check() error {
	if err := checkArch(b.Arch); err != nil {
		return err
	}
	var errs []error
	paths := []string{b.QEMUDir, b.VsockBackend, b.Kernel, b.ModulesDir, b.Crun, b.Pause, b.Busybox, b.Registry}
	if b.Arch == initramfs.ArchS390x {
		paths = append(paths, b.Bootloader)
	}
	for _, p := range paths {
		if _, err := os.Stat(p); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (b *Bed) save(cache string) error {
	data, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return fmt.Errorf("save test bed: %w", err)
	}
	tmp := bedPath(cache, b.Arch) + ".tmp" // the cache is locked
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("save test bed: %w", err)
	}
	if err := os.Rename(tmp, bedPath(cache, b.Arch)); err != nil {
		return fmt.Errorf("save test bed: %w", err)
	}
	return nil
}
