// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/debian"
)

// gnuNames are the names that Debian's (cross) compilers and multiarch folders have, by architecture.
var gnuNames = map[string]string{initramfs.ArchS390x: "s390x-linux-gnu", initramfs.ArchAMD64: "x86_64-linux-gnu"}

// compilers returns the packages that hold a C compiler for arch and the C library it links with.
func compilers(host, arch string) []string {
	if host == arch {
		return []string{"gcc", "libc6-dev", "binutils"}
	}
	gnu := strings.ReplaceAll(gnuNames[arch], "_", "-") // package names have no underscore
	return []string{"gcc-" + gnu, "libc6-dev-" + arch + "-cross", "binutils-" + gnu}
}

// hostTools sees to the packages that the build host itself must have installed: compilers (the protobuf one for make
// generate), tools that tests compare with, and the libraries that the unpacked packages depend on.
func (s *setup) hostTools(ctx context.Context, unpacked []debian.Package) error {
	want := append(compilers(s.host, s.arch), "make", "pkg-config", "python3", "tar", "gzip", "xz-utils",
		"cpio", "cryptsetup-bin", "erofs-utils", "protobuf-compiler", "libprotobuf-dev")
	for _, p := range unpacked {
		for _, name := range debian.DependsNames(p.Depends) {
			if strings.HasPrefix(name, "lib") {
				want = append(want, name)
			}
		}
	}
	slices.Sort(want)
	missing, err := notInstalled(ctx, slices.Compact(want))
	if err != nil || len(missing) == 0 {
		return err
	}
	install := append([]string{"-y", "--no-install-recommends", "install"}, missing...)
	if os.Geteuid() != 0 {
		return fmt.Errorf("this build host lacks packages; as root, run: apt-get %s", strings.Join(install, " "))
	}
	start := time.Now()
	args := append([]string{"-q", "-oDPkg::Lock::Timeout=300"}, install...)
	if _, err := command(ctx, 15*time.Minute, "", nil, "apt-get", args...); err != nil {
		// The machine's lists may be missing or older than the mirror.
		if _, updateErr := command(ctx, 10*time.Minute, "", nil, "apt-get", "-q", "update"); updateErr != nil {
			return errors.Join(err, updateErr)
		}
		if _, err := command(ctx, 15*time.Minute, "", nil, "apt-get", args...); err != nil {
			return fmt.Errorf("install packages that this build host lacks: %w", err)
		}
	}
	s.progress(fmt.Sprintf("%d packages installed on this build host in %.1f s: %s", len(missing), time.Since(start).Seconds(), strings.Join(missing, " ")))
	return nil
}

// notInstalled returns those of the packages that dpkg does not know as installed.
func notInstalled(ctx context.Context, names []string) ([]string, error) {
	// dpkg-query fails when it does not know a name, and still answers for the others.
	out, err := command(ctx, time.Minute, "", nil, "dpkg-query", append([]string{"--show", "--showformat", "${db:Status-Status} ${Package}\n"}, names...)...)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		return nil, fmt.Errorf("ask for installed packages: %w", err)
	}
	var missing []string
	for _, n := range names {
		if !strings.Contains("\n"+out, "\ninstalled "+n+"\n") {
			missing = append(missing, n)
		}
	}
	return missing, nil
}

// command runs a program, bounded by limit, with env added to the environment, and returns its standard output. An
// error quotes the last lines of what the program wrote.
func command(ctx context.Context, limit time.Duration, dir string, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no end after %v", limit)
	}
	text := strings.TrimSpace(stderr.String())
	if text == "" {
		text = strings.TrimSpace(stdout.String())
	}
	lines := strings.Split(text, "\n")
	return stdout.String(), fmt.Errorf("%s: %w: %s", name, err, strings.Join(lines[max(0, len(lines)-10):], "; "))
}
