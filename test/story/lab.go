// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package story

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/image/sign"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/internal/testbed"
)

// Lab is what stories of one architecture share: the test bed, an agent, and a registry with the guest's credentials.
type Lab struct {
	Arch, Dir string
	Bed       *testbed.Bed
	// Agent is a cloister-agent for the guest.
	Agent    string
	Registry *Registry
}

// NewLab builds the agent and starts a registry, with all files in dir. The test bed has to be set up already.
func NewLab(ctx context.Context, arch, dir string) (*Lab, error) {
	bed, err := testbed.Load(os.Getenv("CLOISTER_CACHE"), arch)
	if err != nil {
		return nil, err
	}
	l := &Lab{Arch: arch, Dir: dir, Bed: bed, Agent: filepath.Join(dir, "cloister-agent")}
	if err := GoBuild(ctx, arch, l.Agent, "github.com/cloister-cc/cloister/cmd/cloister-agent"); err != nil {
		return nil, err
	}
	if l.Registry, err = l.NewRegistry(ctx, "registry"); err != nil {
		return nil, err
	}
	return l, nil
}

// Close ends the registry.
func (l *Lab) Close() error { return l.Registry.Stop() }

// NewRegistry starts a further registry with a certificate authority of its own.
func (l *Lab) NewRegistry(ctx context.Context, name string) (*Registry, error) {
	dir := filepath.Join(l.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	pki, err := NewPKI(dir)
	if err != nil {
		return nil, err
	}
	return StartRegistry(ctx, l.Bed.Registry, dir, pki)
}

// GoBuild builds a static binary of one of the project's commands; arch "" is the build host's.
func GoBuild(ctx context.Context, arch, out, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-tags="+sign.BuildTag, "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if arch != "" {
		cmd.Env = append(cmd.Env, "GOARCH="+arch)
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// NewImageKey writes a random image key into a file and returns its path.
func NewImageKey(path string) (string, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	if err := os.WriteFile(path, key, 0o600); err != nil {
		return "", fmt.Errorf("write image key: %w", err)
	}
	return path, nil
}

// BuildGuest builds a guest named name that trusts the lab's registry, uses every image, lets every request pass and logs all. change, if
// not nil, alters what is built.
func (l *Lab) BuildGuest(ctx context.Context, name string, change func(*guestimage.Options)) (string, error) {
	rootfs := filepath.Join(l.Dir, name+"-rootfs")
	if err := GuestRootfs(rootfs); err != nil {
		return "", err
	}
	o := guestimage.Options{
		Arch: l.Arch, Rootfs: rootfs, Kernel: l.Bed.Kernel, ModulesDir: l.Bed.ModulesDir,
		Agent: l.Agent, Crun: l.Bed.Crun, Pause: l.Bed.Pause,
		RegistryCA: l.Registry.PKI.CA, RegistryAuth: l.Registry.Auth,
		Image:  guestimage.ImageOptions{Policy: guestimage.AcceptAnything},
		Policy: layout.PolicyAllowAll, LogLevel: "debug", Output: filepath.Join(l.Dir, name), Builder: "story",
	}
	if change != nil {
		change(&o)
	}
	if _, err := guestimage.Build(ctx, o); err != nil {
		return "", err
	}
	return o.Output, nil
}

// Boot starts the guest in dir. change, if not nil, alters the machine: other disks, for instance.
func (l *Lab) Boot(ctx context.Context, dir string, change func(*qemu.Config)) (*qemu.VM, error) {
	g, err := guestimage.Load(dir)
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(l.Dir, "vm-") // goes with the lab's folder, whose path is short enough for sockets
	if err != nil {
		return nil, err
	}
	c := qemu.Config{
		Arch: g.Arch, Dir: l.Bed.QEMUDir, VsockBackend: l.Bed.VsockBackend, WorkDir: work,
		Kernel: filepath.Join(dir, g.Files.Kernel.Name), Initrd: filepath.Join(dir, g.Files.Initramfs.Name), Append: g.CommandLine,
		Disks: []string{filepath.Join(dir, g.Files.Disk.Name)}, Network: true, Vsock: true,
	}
	if change != nil {
		change(&c)
	}
	return qemu.Start(ctx, c)
}
