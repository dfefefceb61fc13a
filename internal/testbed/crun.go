// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package testbed

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cloister-cc/cloister/internal/debian"
)

// crunSources is what crun is built from.
type crunSources struct {
	tar debian.Package
	dev []debian.Package
}

// fetchCrunSources fetches crun's upstream source, which ships its configure script, and the static libraries.
func (s *setup) fetchCrunSources(ctx context.Context) (crunSources, error) {
	tar, err := s.archive.FetchSource(ctx, crunSuite, "crun")
	if err != nil {
		return crunSources{}, err
	}
	s.note(tar)
	dev, err := s.fetch(ctx, hostSuite, s.arch, "libcap-dev", "libseccomp-dev", "libyajl-dev")
	if err != nil {
		return crunSources{}, err
	}
	return crunSources{tar: tar, dev: dev}, nil
}

// crun builds a static crun without what needs a library at run time: systemd, criu and dlopen. A dynamic one needs
// four times as long to start a container in an emulated guest.
func (s *setup) crun(ctx context.Context, src crunSources) error {
	cc, version, err := s.compiler(ctx)
	if err != nil {
		return err
	}
	key := newCacheKey("crun 1")
	key.add(version)
	key.add(src.tar.SHA256)
	for _, p := range src.dev {
		key.add(p.SHA256)
	}
	dir, err := s.build("crun", src.tar.Version, key, func(dir string) error { return s.compileCrun(ctx, cc, src, dir) })
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bed.Crun = filepath.Join(dir, "crun")
	return nil
}

func (s *setup) compileCrun(ctx context.Context, cc string, src crunSources, dir string) error {
	gnu := gnuNames[s.arch]
	tmp, err := os.MkdirTemp("", "cloister-crun-")
	if err != nil {
		return fmt.Errorf("make build folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	sysroot, source := filepath.Join(tmp, "sysroot"), filepath.Join(tmp, "source")
	for _, p := range src.dev {
		if err := os.CopyFS(sysroot, os.DirFS(p.Path)); err != nil {
			return fmt.Errorf("unpack static libraries: %w", err)
		}
	}
	lib := filepath.Join(sysroot, "usr/lib", gnu)
	// Debian names yajl's static library libyajl_s.a; the linker looks for libyajl.a.
	if err := os.Symlink("libyajl_s.a", filepath.Join(lib, "libyajl.a")); err != nil {
		return fmt.Errorf("name static yajl: %w", err)
	}
	if err := os.Mkdir(source, 0o755); err != nil {
		return fmt.Errorf("make source folder: %w", err)
	}
	if _, err := command(ctx, time.Minute, "", nil, "tar", "-C", source, "--strip-components=1", "--no-same-owner", "-xf", src.tar.Path); err != nil {
		return err
	}
	env := []string{"PKG_CONFIG_PATH=", "PKG_CONFIG_LIBDIR=" + filepath.Join(lib, "pkgconfig"), "PKG_CONFIG_SYSROOT_DIR=" + sysroot}
	configure := []string{
		"--disable-systemd", "--disable-criu", "--disable-dl", "--host=" + gnu, "CC=" + cc,
		"CFLAGS=-O2 -g0 -ffile-prefix-map=" + tmp + "=. -I" + filepath.Join(sysroot, "usr/include"), "LDFLAGS=-L" + lib,
	}
	if _, err := command(ctx, 5*time.Minute, source, env, "./configure", configure...); err != nil {
		return fmt.Errorf("configure crun: %w", err)
	}
	if _, err := command(ctx, 20*time.Minute, source, env, "make", "-j2", "LDFLAGS=-all-static -Wl,--build-id=none -L"+lib); err != nil {
		return fmt.Errorf("compile crun: %w", err)
	}
	_, err = command(ctx, time.Minute, source, nil, gnu+"-strip", "-o", filepath.Join(dir, "crun"), "crun")
	return err
}
