// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package testbed

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/debian"
)

// guestPackages fetches what the guest boots and runs.
func (s *setup) guestPackages(ctx context.Context) error {
	meta := map[string]string{initramfs.ArchS390x: "linux-image-s390x", initramfs.ArchAMD64: "linux-image-cloud-amd64"}[s.arch]
	kernel, err := s.archive.Resolve(ctx, debian.Suite{Name: backportsSuite, Arch: s.arch}, meta, "linux-image-")
	if err != nil {
		return err
	}
	kernels, err := s.fetch(ctx, backportsSuite, s.arch, kernel)
	if err != nil {
		return err
	}
	tools, err := s.fetch(ctx, hostSuite, s.arch, "busybox-static")
	if err != nil {
		return err
	}
	version := strings.TrimPrefix(kernel, "linux-image-")
	modules, err := unpacked(kernels[0], filepath.Join("lib/modules", version))
	if err != nil {
		return err
	}
	busybox, err := unpacked(tools[0], "bin/busybox")
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bed.KernelVersion = version
	s.bed.Kernel = filepath.Join(kernels[0].Path, "boot", "vmlinuz-"+version)
	s.bed.ModulesDir, s.bed.Busybox = modules, busybox
	return nil
}

// bootloader fetches the first code of a Secure Execution image, which only s390x has.
func (s *setup) bootloader(ctx context.Context) error {
	if s.arch != initramfs.ArchS390x {
		return nil
	}
	packages, err := s.fetch(ctx, newestSuite, s.arch, "s390-tools")
	if err != nil {
		return err
	}
	dir, err := unpacked(packages[0], "share/s390-tools/pvimg")
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bed.Bootloader = dir
	return nil
}

// unpacked returns the path of a package's file, which older packages have at the root and newer ones below usr.
func unpacked(p debian.Package, name string) (string, error) {
	for _, base := range []string{"usr", "."} {
		path := filepath.Join(p.Path, base, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("package %s %s of %s has no %s", p.Name, p.Version, p.Suite, name)
}
