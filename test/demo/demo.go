// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloister-cc/cloister/internal/testbed"
	"github.com/cloister-cc/cloister/test/story"
)

const (
	cloister = "bin/cloister"
	keyURI   = "kbs:///default/image-key/demo"
	image    = "demo/hello:latest"
	// cacheVariable names the cache folder; the Makefile sets it. Empty means the default.
	cacheVariable = "CLOISTER_CACHE"
	secret        = "the operator of this machine has not seen this line"
)

// demo is one run; the fields fill as the steps go by.
type demo struct {
	arch, dir string
	out       io.Writer
	start     time.Time

	bed      *testbed.Bed
	registry *story.Registry
	key      string
	vm       *guest
}

// run does the steps in order, each with a line that says its result and its time.
func run(ctx context.Context, arch, dir string) (err error) {
	d := &demo{arch: arch, dir: dir, out: os.Stdout, start: time.Now()}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	steps := d.steps()
	for i, s := range steps {
		begin := time.Now()
		result, err := s.run(ctx)
		if err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, s.name, err)
		}
		fmt.Fprintf(d.out, "%d/%d %-10s %s  [%.1f s]\n", i+1, len(steps), s.name, result, time.Since(begin).Seconds())
	}
	fmt.Fprintf(d.out, "done in %.1f s; what was made is in %s\n", time.Since(d.start).Seconds(), dir)
	fmt.Fprintln(d.out, "note: nothing protects the memory of an emulated machine; this shows the guest's work, not the hardware's")
	return nil
}

// step is one line of the demo.
type step struct {
	name string
	run  func(context.Context) (string, error)
}

func (d *demo) steps() []step {
	return []step{
		{"tools", d.tools},
		{"registry", d.startRegistry},
		{"image", d.makeImage},
		{"guest", d.buildGuest},
		{"boot", d.boot},
		{"container", d.container},
		{"power-off", d.powerOff},
	}
}

func (d *demo) close() error {
	var errs []error
	if d.vm != nil {
		errs = append(errs, d.vm.stop())
	}
	if d.registry != nil {
		errs = append(errs, d.registry.Stop())
	}
	return errors.Join(errs...)
}

// tools builds the project's two programs and sets the test bed up.
func (d *demo) tools(ctx context.Context) (string, error) {
	for _, b := range []struct{ arch, out, pkg string }{
		{"", cloister, "./cmd/cloister"},
		{d.arch, d.agent(), "./cmd/cloister-agent"},
	} {
		if err := story.GoBuild(ctx, b.arch, b.out, b.pkg); err != nil {
			return "", err
		}
	}
	if _, err := d.cloister(ctx, "setup", "--arch", d.arch, "--cache", os.Getenv(cacheVariable)); err != nil {
		return "", err
	}
	bed, err := testbed.Load(os.Getenv(cacheVariable), d.arch)
	if err != nil {
		return "", err
	}
	d.bed = bed
	return fmt.Sprintf("cloister, cloister-agent, crun, all static; kernel %s", bed.KernelVersion), nil
}

func (d *demo) agent() string { return "bin/cloister-agent-" + d.arch }

func (d *demo) startRegistry(ctx context.Context) (string, error) {
	dir := filepath.Join(d.dir, "registry")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	pki, err := story.NewPKI(dir)
	if err != nil {
		return "", err
	}
	if d.registry, err = story.StartRegistry(ctx, d.bed.Registry, dir, pki); err != nil {
		return "", err
	}
	return fmt.Sprintf("https://%s with a password; the guest gets its CA", d.registry.Host(story.LoopbackHost)), nil
}

// makeImage makes the container image, encrypts its layer for the key that only the guest will have, and pushes it.
func (d *demo) makeImage(ctx context.Context) (string, error) {
	rootfs := filepath.Join(d.dir, "container")
	if err := story.BusyboxRootfs(rootfs, d.bed.Busybox, map[string]string{"etc/secret": secret + "\n"}); err != nil {
		return "", err
	}
	var err error
	if d.key, err = story.NewImageKey(filepath.Join(d.dir, "image.key")); err != nil {
		return "", err
	}
	plain, encrypted := filepath.Join(d.dir, "image"), filepath.Join(d.dir, "image-encrypted")
	ref := d.registry.Host(story.LoopbackHost) + "/" + image
	for _, args := range [][]string{
		{"image", "create", "--rootfs", rootfs, "--arch", d.arch, plain},
		{"image", "encrypt", "--key", keyURI + "=" + d.key, plain, encrypted},
		{"image", "push", "--ca", d.registry.PKI.CA, "--auth", d.registry.Auth, encrypted, ref},
	} {
		if _, err := d.cloister(ctx, args...); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s, encrypted for %s, pushed", image, keyURI), nil
}

func (d *demo) buildGuest(ctx context.Context) (string, error) {
	rootfs := filepath.Join(d.dir, "rootfs")
	if err := story.GuestRootfs(rootfs); err != nil {
		return "", err
	}
	if _, err := d.cloister(ctx, "build", "--arch", d.arch, "--rootfs", rootfs,
		"--kernel", d.bed.Kernel, "--modules", d.bed.ModulesDir, "--agent", d.agent(), "--crun", d.bed.Crun, "--pause", d.bed.Pause,
		"--registry-ca", d.registry.PKI.CA, "--registry-auth", d.registry.Auth, "--image-key", keyURI+"="+d.key,
		"--policy", "allow-all", "--output", d.guestDir()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: encrypted root disk, and initramfs that unlocks it", d.guestDir()), nil
}

func (d *demo) guestDir() string { return filepath.Join(d.dir, "guest") }

// cloister runs the command and returns what it prints on standard output; its messages are shown only if it fails.
func (d *demo) cloister(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, cloister, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if args[0] == "setup" {
		cmd.Stderr = io.MultiWriter(d.out, &stderr) // minutes from an empty cache: show that it goes on
	}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("cloister %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}
