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

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/signtest"
	"github.com/cloister-cc/cloister/internal/testbed"
	"github.com/cloister-cc/cloister/test/story"
)

const (
	cloister = "bin/cloister"
	image    = "demo/hello:latest"
	// cacheVariable names the cache folder; the Makefile sets it. Empty means the default.
	cacheVariable = "CLOISTER_CACHE"
)

// Names of secrets in the guest.
const (
	imageKeyURI   = "kbs:///default/image-key/demo"
	tokenURI      = "kbs:///default/secret/token"
	signingKeyURI = "kbs:///default/signing-key/owner"
)

// demo is one run; the fields fill as the steps go by.
type demo struct {
	arch, dir string
	out       io.Writer
	start     time.Time

	bed      *testbed.Bed
	registry *story.Registry
	vm       *guest
	canaries canaries
	table    string // what the host saw
}

// run does the steps in order, each with a line that says its result and its time.
func run(ctx context.Context, arch, dir string) (err error) {
	d := &demo{arch: arch, dir: dir, out: os.Stdout, start: time.Now()}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for _, sub := range []string{d.owner(""), d.host(""), d.private("")} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return err
		}
	}
	if !d.sealed() {
		fmt.Fprintln(d.out, "warning: "+guestimage.Unprotected)
	}
	steps := d.steps()
	for i, s := range steps {
		begin := time.Now()
		result, err := s.run(ctx)
		if err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, s.name, err)
		}
		fmt.Fprintf(d.out, "%2d/%d %-10s %s  [%.1f s]\n", i+1, len(steps), s.name, result, time.Since(begin).Seconds())
	}
	fmt.Fprint(d.out, d.table)
	fmt.Fprintf(d.out, "done in %.1f s; what the host held is in %s\n", time.Since(d.start).Seconds(), d.host(""))
	if !d.sealed() {
		fmt.Fprintln(d.out, "warning: "+guestimage.Unprotected)
	}
	fmt.Fprintln(d.out, "note: nothing protects the memory of an emulated machine; this shows the guest's work, not the hardware's")
	return nil
}

// The folders: what belongs to the owner of the guest, what the host gets or sees, and what on real hardware is memory
// that the host cannot read. The last is deleted in any case.
func (d *demo) owner(name string) string   { return filepath.Join(d.dir, "owner", name) }
func (d *demo) host(name string) string    { return filepath.Join(d.dir, "host", name) }
func (d *demo) private(name string) string { return filepath.Join(d.dir, "ultravisor", name) }
func (d *demo) guestDir() string           { return d.owner("guest") }
func (d *demo) agent() string              { return "bin/cloister-agent-" + d.arch }

// sealed says whether the architecture has a sealed image.
func (d *demo) sealed() bool { return d.arch != initramfs.ArchAMD64 }

// step is one line of the demo.
type step struct {
	name string
	run  func(context.Context) (string, error)
}

func (d *demo) steps() []step {
	steps := []step{
		{"tools", d.tools},
		{"registry", d.startRegistry},
		{"image", d.makeImage},
		{"guest", d.buildGuest},
	}
	if d.sealed() {
		steps = append(steps, step{"host key", d.makeHostKey}, step{"seal", d.seal}, step{"open", d.open})
	}
	return append(steps,
		step{"boot", d.boot}, step{"container", d.container}, step{"power-off", d.powerOff}, step{"host saw", d.hostSaw})
}

func (d *demo) close() error {
	var errs []error
	if d.vm != nil {
		errs = append(errs, d.vm.stop())
	}
	if d.registry != nil {
		errs = append(errs, d.registry.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(d.private("")))...)
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

func (d *demo) startRegistry(ctx context.Context) (string, error) {
	if err := os.MkdirAll(d.host("registry"), 0o700); err != nil {
		return "", err
	}
	pki, err := story.NewPKI(d.owner(""))
	if err != nil {
		return "", err
	}
	if d.registry, err = story.StartRegistry(ctx, d.bed.Registry, d.host("registry"), pki); err != nil {
		return "", err
	}
	return fmt.Sprintf("https://%s with a password; the guest gets its CA", d.registry.Host(story.LoopbackHost)), nil
}

// makeImage makes the container image, encrypts its layer for the key that only the guest will have, pushes it and signs it.
func (d *demo) makeImage(ctx context.Context) (string, error) {
	if err := d.makeCanaries(ctx); err != nil {
		return "", err
	}
	rootfs := d.owner("container")
	if err := story.BusyboxRootfs(rootfs, d.bed.Busybox, map[string]string{"etc/canary": d.canaries.layer}); err != nil {
		return "", err
	}
	key, err := story.NewImageKey(d.owner("image.key"))
	if err != nil {
		return "", err
	}
	ref := d.registry.Host(story.LoopbackHost) + "/" + image
	for _, args := range [][]string{
		{"image", "create", "--rootfs", rootfs, "--arch", d.arch, d.owner("image")},
		{"encrypt", "--key", imageKeyURI + "=" + key, "oci:" + d.owner("image"), "oci:" + d.owner("image-encrypted")},
		{"image", "push", "--ca", d.registry.PKI.CA, "--auth", d.registry.Auth, d.owner("image-encrypted"), ref},
	} {
		if _, err := d.cloister(ctx, args...); err != nil {
			return "", err
		}
	}
	if err := d.sign(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, encrypted for %s, pushed, signed", image, imageKeyURI), nil
}

// sign signs the image as cosign does, and writes the policy by which the guest will want that.
func (d *demo) sign(ctx context.Context) error {
	signer, err := signtest.New()
	if err != nil {
		return err
	}
	policy, err := signer.Policy()
	if err != nil {
		return err
	}
	ref := d.registry.Host(story.GuestHost) + "/" + image
	if err := d.registry.Sign(ctx, signer, ref, ref); err != nil {
		return err
	}
	return os.WriteFile(d.owner("policy.json"), policy, 0o600)
}

func (d *demo) buildGuest(ctx context.Context) (string, error) {
	if err := story.GuestRootfs(d.owner("rootfs")); err != nil {
		return "", err
	}
	if err := os.WriteFile(d.owner("rootfs/etc/canary"), []byte(d.canaries.root), 0o600); err != nil {
		return "", err
	}
	if _, err := d.cloister(ctx, "build", "--arch", d.arch, "--rootfs", d.owner("rootfs"),
		"--kernel", d.bed.Kernel, "--modules", d.bed.ModulesDir, "--agent", d.agent(), "--crun", d.bed.Crun, "--pause", d.bed.Pause,
		"--registry-ca", d.registry.PKI.CA, "--registry-auth", d.registry.Auth, "--image-key", imageKeyURI+"="+d.owner("image.key"),
		"--secret", tokenURI+"="+d.owner("token"), "--secret", signingKeyURI+"="+d.owner("signing.pub.jwk"),
		"--image-policy", d.owner("policy.json"), "--policy", "allow-all", "--output", d.guestDir()); err != nil {
		return "", err
	}
	files := []string{"root.img"}
	if !d.sealed() {
		files = append(files, "kernel", "initramfs.img", "guest.json")
	}
	for _, name := range files {
		if err := os.Link(filepath.Join(d.guestDir(), name), d.host(name)); err != nil {
			return "", err
		}
	}
	return "encrypted root disk, and initramfs that unlocks it; the host gets " + strings.Join(files, ", "), nil
}

// cloister runs the command and returns what it prints on standard output; its messages are shown only if it fails.
func (d *demo) cloister(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, cloister, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if args[0] == "setup" {
		cmd.Stderr = io.MultiWriter(d.out, &stderr) // minutes from an empty cache: show that it goes on
	}
	if err := cmd.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("cloister %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}
