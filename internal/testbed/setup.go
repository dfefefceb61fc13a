// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package testbed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/debian"
)

// Suites that the parts come from: the build host's, and newer ones for what it lacks. The static libraries must not want
// a newer C library than the build host's compiler has. Every suite costs a fetch of its lists, and a mirror that is
// between two states of one stops the set-up: few are better.
const (
	hostSuite      = "bookworm"
	backportsSuite = "bookworm-backports" // QEMU and the kernel
	crunSuite      = "trixie"             // source alone
	newestSuite    = "sid"                // what no stable Debian has yet
)

// setupTimeout bounds one Setup; from an empty cache it takes a minute or two.
const setupTimeout = 45 * time.Minute

// Options say what Setup sets up.
type Options struct {
	// Arch is the guest's architecture.
	Arch string
	// CacheDir is the cache folder; "" means DefaultCacheDir.
	CacheDir string
	// Progress gets one line for each step; nil means none. It may be called by several goroutines at once.
	Progress func(message string)
}

// Setup fetches and builds what the cache folder does not hold yet, and returns where everything lies. It may run as
// often as one likes and does nothing when all is there and up to date. Programs and libraries that the build host
// itself lacks are installed when it runs as root; otherwise the error says what to install.
func Setup(ctx context.Context, o Options) (*Bed, error) {
	if err := checkArch(o.Arch); err != nil {
		return nil, fmt.Errorf("set up test bed: %w", err)
	}
	if err := checkHost(); err != nil {
		return nil, fmt.Errorf("set up test bed: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	cache, err := cacheDir(o.CacheDir)
	if err != nil {
		return nil, err
	}
	progress := o.Progress
	if progress == nil {
		progress = func(string) {}
	}
	unlock, err := lock(ctx, cache, progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	archive, err := debian.Open(filepath.Join(cache, "debian"), progress)
	if err != nil {
		return nil, err
	}
	s := &setup{cache: cache, arch: o.Arch, host: runtime.GOARCH, archive: archive, progress: progress, bed: Bed{Arch: o.Arch}}
	if err := s.run(ctx); err != nil {
		return nil, fmt.Errorf("set up test bed of %s: %w", o.Arch, err)
	}
	return &s.bed, nil
}

// checkHost refuses build hosts for which the choice of suites does not hold.
func checkHost() error {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return fmt.Errorf("this build host is not known to be Debian: %w", err)
	}
	if !strings.Contains("\n"+string(data), "\nVERSION_CODENAME="+hostSuite) {
		return fmt.Errorf("this build host is not Debian 12 (%s); use one, or a container of it", hostSuite)
	}
	if _, ok := gnuNames[runtime.GOARCH]; !ok {
		return fmt.Errorf("build hosts of architecture %s are not supported", runtime.GOARCH)
	}
	return nil
}

// setup is one run of Setup.
type setup struct {
	cache, arch, host string
	archive           *debian.Archive
	progress          func(string)

	mu  sync.Mutex // guards bed
	bed Bed
}

// run does the steps. What only waits for the network goes on beside what compiles; there is one compilation at a time.
func (s *setup) run(ctx context.Context) error {
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	sources := make(chan crunSources, 1)
	g.Go(func() error {
		src, err := s.fetchCrunSources(gctx)
		if err == nil {
			sources <- src
		}
		return err
	})
	g.Go(func() error { return s.guestPackages(gctx) })
	g.Go(func() error { return s.bootloader(gctx) })
	g.Go(func() error { return s.hostPackages(gctx) })
	g.Go(func() error {
		// QEMU's own list of libraries is part of what the build host must have.
		if err := s.qemu(gctx); err != nil {
			return err
		}
		if err := s.pause(gctx); err != nil {
			return err
		}
		select {
		case src := <-sources:
			return s.crun(gctx, src)
		case <-gctx.Done():
			return gctx.Err()
		}
	})
	if err := g.Wait(); err != nil {
		return err
	}
	slices.SortFunc(s.bed.Packages, func(a, b debian.Package) int {
		return cmp.Or(cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.Suite.Name, b.Suite.Name), cmp.Compare(a.Name, b.Name))
	})
	if err := s.bed.check(); err != nil {
		return err
	}
	if err := s.bed.save(s.cache); err != nil {
		return err
	}
	s.progress(fmt.Sprintf("test bed of %s ready in %.1f s", s.arch, time.Since(start).Seconds()))
	return nil
}

// fetch fetches packages and notes them in the bed.
func (s *setup) fetch(ctx context.Context, suite, arch string, names ...string) ([]debian.Package, error) {
	packages, err := s.archive.Fetch(ctx, debian.Suite{Name: suite, Arch: arch}, names...)
	if err != nil {
		return nil, err
	}
	s.note(packages...)
	return packages, nil
}

func (s *setup) note(packages ...debian.Package) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bed.Packages = append(s.bed.Packages, packages...)
}

// hostPackages fetches what runs on the build host but needs no libraries of its own.
func (s *setup) hostPackages(ctx context.Context) error {
	vsock, err := s.fetch(ctx, newestSuite, s.host, "vhost-device-vsock")
	if err != nil {
		return err
	}
	registry, err := s.fetch(ctx, hostSuite, s.host, "docker-registry")
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bed.VsockBackend = filepath.Join(vsock[0].Path, "usr/bin/vhost-device-vsock")
	s.bed.Registry = filepath.Join(registry[0].Path, "usr/bin/docker-registry")
	return nil
}

// qemu fetches QEMU, makes one tree of its packages, and sees to the libraries that it and the compilations need.
func (s *setup) qemu(ctx context.Context) error {
	names := []string{"qemu-system-common", "qemu-system-data"}
	switch s.arch {
	case initramfs.ArchS390x:
		names = append(names, "qemu-system-s390x")
	case initramfs.ArchAMD64:
		names = append(names, "qemu-system-x86", "seabios")
	default:
		return checkArch(s.arch)
	}
	packages, err := s.fetch(ctx, backportsSuite, s.host, names...)
	if err != nil {
		return err
	}
	if err := s.hostTools(ctx, packages); err != nil {
		return err
	}
	key := newCacheKey("qemu 1")
	for _, p := range packages {
		key.add(p.SHA256)
	}
	dir, err := s.build("qemu", packages[0].Version, key, func(dir string) error {
		for _, p := range packages {
			if err := os.CopyFS(dir, os.DirFS(p.Path)); err != nil {
				return fmt.Errorf("join QEMU packages: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bed.QEMUDir = dir
	return nil
}

// build returns the folder cache/kind/version-arch-key, which fill fills when it is not there yet. A folder appears
// under its name only when fill has ended without error.
func (s *setup) build(kind, version string, key *cacheKey, fill func(dir string) error) (string, error) {
	dir := filepath.Join(s.cache, kind, clean(version)+"-"+s.arch+"-"+key.String())
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	start := time.Now()
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("make cache folder: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".build-")
	if err != nil {
		return "", fmt.Errorf("make build folder: %w", err)
	}
	err = os.Chmod(tmp, 0o755)
	if err == nil {
		err = fill(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("build %s: %w", kind, err), os.RemoveAll(tmp))
	}
	s.progress(fmt.Sprintf("%s %s for %s ready in %.1f s", kind, version, s.arch, time.Since(start).Seconds()))
	return dir, nil
}
