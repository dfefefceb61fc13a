// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guesttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cloister-cc/cloister/image/sign"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/guesttest/plan"
	"github.com/cloister-cc/cloister/internal/testbed"
)

const (
	// testTimeout bounds each package's tests in the guest.
	testTimeout = 10 * time.Minute
	// buildTimeout bounds each compilation.
	buildTimeout = 10 * time.Minute
	// testDisk is the scratch disk's device in the guest.
	testDisk = "/dev/vda"
)

// applets are the programs of busybox that tests find in /bin.
func applets() []string {
	return []string{"sh", "true", "false", "sleep", "cat", "echo", "env", "id", "ls"}
}

// image makes the initramfs of a test guest.
type image struct {
	bed  *testbed.Bed
	root string // the module's folder
	tmp  string // where compiled binaries lie
	tree initramfs.Tree
	plan plan.Plan
}

// writeImage compiles the tests of the packages and writes an initramfs that runs them to output. It goes on without a
// package that does not compile; such a package is then one that printed no result.
func writeImage(ctx context.Context, bed *testbed.Bed, root, tmp string, packages []Package, output string) error {
	m := &image{bed: bed, root: root, tmp: tmp}
	if err := m.base(ctx); err != nil {
		return fmt.Errorf("make test guest: %w", err)
	}
	if err := m.modules(); err != nil {
		return fmt.Errorf("make test guest: %w", err)
	}
	var broken []error
	for _, p := range packages {
		if err := m.test(ctx, p); err != nil {
			broken = append(broken, fmt.Errorf("make test guest: %s: %w", p.Path, err))
		}
	}
	if err := m.write(ctx, output); err != nil {
		return err
	}
	if len(broken) > 0 {
		return &brokenError{errors.Join(broken...)}
	}
	return nil
}

// brokenError says which packages the image lacks; the image is there.
type brokenError struct{ error }

func (m *image) write(ctx context.Context, output string) error {
	data, err := json.MarshalIndent(m.plan, "", "  ")
	if err != nil {
		return fmt.Errorf("make test guest: %w", err)
	}
	if err := m.tree.Add(initramfs.File{Path: plan.Path, Mode: 0o644, Data: data}); err != nil {
		return err
	}
	f, err := os.Create(output)
	if err != nil {
		return fmt.Errorf("make test guest: %w", err)
	}
	return errors.Join(m.tree.WriteImage(ctx, f, initramfs.CompressNone), f.Close())
}

// base adds PID 1 and what every test finds.
func (m *image) base(ctx context.Context) error {
	pid1 := filepath.Join(m.tmp, "init")
	if err := m.goTool(ctx, "build", "-tags="+sign.BuildTag, "-trimpath", "-ldflags=-s -w", "-o", pid1, "./internal/guesttest/init"); err != nil {
		return err
	}
	files := []initramfs.File{
		{Path: "/init", Mode: 0o755, Source: pid1},
		{Path: "/cloister/bin/crun", Mode: 0o755, Source: m.bed.Crun},
		{Path: "/cloister/bin/pause", Mode: 0o755, Source: m.bed.Pause},
		{Path: "/bin/busybox", Mode: 0o755, Source: m.bed.Busybox},
		{Path: "/etc/hosts", Mode: 0o644, Data: []byte("127.0.0.1 localhost\n::1 localhost\n")},
		{Path: "/etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/tmp:/bin/sh\n")},
		{Path: "/etc/group", Mode: 0o644, Data: []byte("root:x:0:\n")},
		{Path: "/newroot", Mode: fs.ModeDir | 0o755},
		// The kernel opens PID 1's console before anything is mounted.
		{Path: "/dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
	}
	for _, a := range applets() {
		files = append(files, initramfs.File{Path: "/bin/" + a, Mode: fs.ModeSymlink | 0o777, Target: "busybox"})
	}
	for _, f := range files {
		if err := m.tree.Add(f); err != nil {
			return err
		}
	}
	m.plan.Env = []string{
		"PATH=/bin:/cloister/bin", "HOME=/tmp", "TMPDIR=/tmp", "CLOISTER_GUEST=1", "REQUIRE_QEMU=1",
		"CRUN=/cloister/bin/crun", "CLOISTER_PAUSE=/cloister/bin/pause", "CLOISTER_BUSYBOX=/bin/busybox", "CLOISTER_TEST_DISK=" + testDisk,
	}
	return nil
}

func (m *image) modules() error {
	want, err := initramfs.GuestModules(m.bed.Arch)
	if err != nil {
		return err
	}
	closure, err := initramfs.Resolve(m.bed.ModulesDir, append(want, extraModules()...))
	if err != nil {
		return err
	}
	for _, mod := range closure.Modules {
		if err := m.tree.Add(initramfs.File{Path: path.Join(plan.ModulesDir, mod.File), Mode: 0o644, Data: mod.Data}); err != nil {
			return err
		}
		m.plan.Modules = append(m.plan.Modules, plan.Module{File: mod.File, Optional: mod.Optional})
	}
	return nil
}

// test compiles a package's tests and adds them, with the package's testdata, to the plan.
func (m *image) test(ctx context.Context, p Package) error {
	name := strings.ReplaceAll(p.Path, "/", "-") + ".test"
	binary := filepath.Join(m.tmp, name)
	if err := m.goTool(ctx, "test", "-c", "-tags="+sign.BuildTag, "-trimpath", "-ldflags=-s -w", "-o", binary, "./"+p.Path); err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("the package has no tests: %w", err)
	}
	t := plan.Test{Package: p.Path, Binary: "/test/bin/" + name, Dir: path.Join("/test/src", p.Path), Args: testArgs(p)}
	if err := m.tree.Add(initramfs.File{Path: t.Binary, Mode: 0o755, Source: binary}); err != nil {
		return err
	}
	if err := m.tree.Add(initramfs.File{Path: t.Dir, Mode: fs.ModeDir | 0o755}); err != nil {
		return err
	}
	for _, f := range p.Files {
		if err := m.tree.Add(initramfs.File{Path: path.Join("/test/src", f), Mode: 0o644, Source: filepath.Join(m.root, f)}); err != nil {
			return err
		}
	}
	m.plan.Tests = append(m.plan.Tests, t)
	return m.testdata(filepath.Join(m.root, p.Path, "testdata"), path.Join(t.Dir, "testdata"))
}

func testArgs(p Package) []string {
	args := []string{"-test.v=test2json", "-test.timeout=" + testTimeout.String(), "-test.short=" + strconv.FormatBool(!p.Long)}
	if p.Exclude != "" {
		args = append(args, "-test.skip="+p.Exclude)
	}
	return args
}

func (m *image) testdata(from, to string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name == from {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		f := initramfs.File{Path: path.Join(to, filepath.ToSlash(rel)), Mode: 0o644, Source: name}
		switch {
		case d.IsDir():
			f = initramfs.File{Path: f.Path, Mode: fs.ModeDir | 0o755}
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is neither a file nor a folder", name)
		}
		return m.tree.Add(f)
	})
}

// goTool runs the go tool for the guest's architecture in the module's folder.
func (m *image) goTool(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = m.root
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+m.bed.Arch, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", args[0], err, out)
	}
	return nil
}
