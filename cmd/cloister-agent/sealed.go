// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/cloister-cc/cloister/agent/boot"
	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/image"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/keys/sealed"
)

// imagesDir is the image store on scratch. Its path must be short: it is part of every layer's in an overlay's mount
// options.
const imagesDir = boot.ScratchDir + "/img"

// signaturesDir holds signatures while they are verified.
const signaturesDir = boot.RunDir + "/signatures"

// sealedSetup is the setup of a guest that was booted from an initramfs of ours. The boot config alone decides: nothing
// on the kernel command line or in the environment is looked at, and of the root file system only what it names.
func sealedSetup(ctx context.Context, guest *boot.Guest, log *slog.Logger) (setup, error) {
	ca, err := certPool(guest.RegistryCA)
	if err != nil {
		return setup{}, err
	}
	c := guest.Config
	s := setup{
		address: fmt.Sprintf("vsock://-1:%d", port(c)),
		policy:  c.Policy,
		images: image.Config{
			Root: imagesDir, CA: ca, Auth: guest.RegistryAuth.Bytes(), Keys: keyFunc(guest.ImageKeys), Log: log, PauseRootfs: boot.PauseRootfs,
			Preseeded: preseeded(c.Images),
		},
		runtime:    boot.RuntimePath,
		stateDir:   filepath.Join(boot.RunDir, "crun"),
		seccomp:    true,
		cgroups:    &cgroup.Hierarchy{},
		guest:      true,
		privileged: c.Privileged,
		pipeSize:   c.ContainerPipeSize,
		hookPath:   c.GuestHookPath,
		openSecret: openFunc(guest.Secrets),
		side:       side{console: c.DebugConsole, consolePort: layout.DebugConsolePort, logPort: c.LogPort, tracing: c.Tracing},
	}
	settings := imageSettings{ImageSettings: c.Image, resources: guest.Secrets, tempDir: signaturesDir}
	return s, settings.apply(ctx, &s.images)
}

// preseeded says where the images lie that the boot config lists: the root file system is this process's root now.
func preseeded(images []layout.Image) []image.Preseeded {
	out := make([]image.Preseeded, 0, len(images))
	for _, i := range images {
		out = append(out, image.Preseeded{Reference: i.Reference, Digest: i.Digest, Manifest: i.Manifest, Rootfs: i.Rootfs()})
	}
	return out
}

// certPool reads the CA of the sealed initramfs. There is no other: without it, no registry is trusted.
func certPool(pem []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if len(pem) > 0 && !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("the registry CA in the initramfs holds no certificate")
	}
	return pool, nil
}

// keyFunc gives image the one thing it needs of keys.
func keyFunc(provider keys.Provider) func(context.Context, string) ([]byte, error) {
	return func(ctx context.Context, uri string) ([]byte, error) {
		secret, err := provider.Get(ctx, uri)
		if errors.Is(err, keys.ErrNotFound) {
			return nil, fmt.Errorf("%w: %s", image.ErrNoKey, uri)
		}
		if err != nil {
			return nil, err
		}
		return secret.Bytes(), nil
	}
}

// openFunc gives agent the one thing it needs of sealed secrets.
func openFunc(provider keys.Provider) func(context.Context, string) (string, error) {
	return func(ctx context.Context, text string) (string, error) {
		secret, err := sealed.Open(ctx, text, provider)
		if err != nil {
			return "", err
		}
		defer secret.Wipe()
		return string(secret.Bytes()), nil
	}
}

func port(c *layout.BootConfig) uint32 {
	if c.Port == 0 {
		return layout.DefaultPort
	}
	return c.Port
}
