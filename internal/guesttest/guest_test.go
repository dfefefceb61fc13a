// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guesttest

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cloister-cc/cloister/internal/guesttest/plan"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/internal/testbed"
)

var (
	archFlag     = flag.String("arch", os.Getenv("CLOISTER_GUEST_ARCH"), "run the guest tests on this architecture: s390x or amd64")
	packagesFlag = flag.String("packages", "", "run the tests of these packages only (folders, separated by commas)")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// guestTimeout bounds the guest as a whole.
	guestTimeout = 15 * time.Minute
	diskSize     = 32 << 20
	memoryMiB    = 2048
)

// TestInGuest runs the tests of Packages in a guest. It fails when one of them fails, when a package printed no
// result, and when a test skipped itself that had to run.
func TestInGuest(t *testing.T) {
	arch := *archFlag
	if arch == "" {
		if os.Getenv("REQUIRE_QEMU") == "1" {
			t.Fatal("REQUIRE_QEMU=1, but neither -arch nor CLOISTER_GUEST_ARCH names an architecture")
		}
		t.Skip("needs a guest: run 'make test-guest ARCH=s390x' (or amd64)")
	}
	bed, err := testbed.Load(os.Getenv("CLOISTER_CACHE"), arch)
	if err != nil {
		t.Fatal(err)
	}
	packages := selected(t)
	console := runGuest(t, bed, packages)
	events, err := plan.ParseConsole(console)
	if err != nil {
		t.Error(err)
	}
	r := collect(events)
	for _, e := range r.errors {
		t.Errorf("guest: %s", e)
	}
	for _, p := range packages {
		t.Run(p.Path, func(t *testing.T) { check(t, p, r.results[p.Path]) })
	}
	if !r.done {
		t.Errorf("the guest ended before its plan did; console:\n%s", lastLines(console, 60))
	}
}

func check(t *testing.T, p Package, r *result) {
	t.Helper()
	problems := r.problems(p)
	if r != nil {
		t.Logf("%d passed, %d failed, %d skipped in %.1f s", len(r.passed), len(r.failed), len(r.skipped), r.seconds)
	}
	if len(problems) == 0 {
		return
	}
	if r != nil {
		t.Logf("output in the guest:\n%s", strings.Join(r.output, "\n"))
	}
	for _, m := range problems {
		t.Error(m)
	}
}

func selected(t *testing.T) []Package {
	t.Helper()
	all := Packages()
	if *packagesFlag == "" {
		return all
	}
	var packages []Package
	for name := range strings.SplitSeq(*packagesFlag, ",") {
		p := Package{Path: name, Long: true} // one that is not on the list runs all the same
		for _, known := range all {
			if known.Path == name {
				p = known
			}
		}
		packages = append(packages, p)
	}
	return packages
}

// runGuest boots a guest with the packages' tests and returns its console.
func runGuest(t *testing.T, bed *testbed.Bed, packages []Package) string {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "initramfs.img")
	start := time.Now()
	err := writeImage(t.Context(), bed, moduleRoot(t), dir, packages, image)
	if _, ok := errors.AsType[*brokenError](err); ok {
		t.Error(err)
	} else if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("initramfs of %d MiB made in %.1f s", st.Size()>>20, time.Since(start).Seconds())
	disk := filepath.Join(dir, "scratch.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, diskSize); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), guestTimeout)
	defer cancel()
	vm, err := qemu.Start(ctx, qemu.Config{
		Arch: bed.Arch, Dir: bed.QEMUDir, Kernel: bed.Kernel, Initrd: image, Append: qemu.ConsoleArgs(bed.Arch) + " loglevel=1",
		Disks: []string{disk}, CPUs: 2, MemoryMiB: memoryMiB, Network: true, WorkDir: dir, Console: progress(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Wait(context.WithoutCancel(ctx)); err != nil {
		t.Error(err)
	}
	t.Logf("guest of %s ran for %.1f s", bed.Arch, time.Since(start).Seconds())
	if ctx.Err() != nil {
		t.Errorf("the guest did not end within %v", guestTimeout)
	}
	return vm.Console()
}

// progress is where the console goes while the guest runs: nowhere, or to standard error with CLOISTER_GUEST_CONSOLE=1.
func progress(t *testing.T) *os.File {
	t.Helper()
	if os.Getenv("CLOISTER_GUEST_CONSOLE") == "1" {
		return os.Stderr
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	return null
}

// moduleRoot returns the folder of the module, where go.mod lies.
func moduleRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return root
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
