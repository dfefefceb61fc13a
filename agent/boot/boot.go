// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/keys/file"
)

// Volumes opens the root disk. What it does with a device is up to the kernel; what it is given is trusted.
type Volumes interface {
	// Find returns the block device that begins with the pinned header.
	Find(ctx context.Context, header []byte) (device string, err error)
	// Unlock maps the encrypted payload of the device and returns the device of the plaintext. It does so by UnlockDisk
	// in a process of its own, which ends before Unlock returns.
	Unlock(ctx context.Context, device string) (plain string, err error)
	// Verify maps the device so that every block read is checked against the root hash.
	Verify(device string, v layout.Verity) (verified string, err error)
}

// Options are what Run needs.
type Options struct {
	Log     *slog.Logger
	Volumes Volumes
	// DiskTimeout bounds the wait for the root disk and its unlocking; 0 means DefaultDiskTimeout.
	DiskTimeout time.Duration
}

// DefaultDiskTimeout is how long the root disk may take to appear and be unlocked.
const DefaultDiskTimeout = 10 * time.Second

// Paths in the running guest, on the tmpfs at /run.
const (
	// RunDir holds what the agent keeps from the initramfs.
	RunDir = "/run/cloister"
	// RuntimePath is the OCI runtime after the move to the root file system.
	RuntimePath = RunDir + "/bin/crun"
	// PauseRootfs is the root file system of the pause image after the move.
	PauseRootfs = RunDir + "/pause/rootfs"
	// ScratchDir is where images and containers' writable layers go.
	// Its path is short because it is part of every lower layer's in an overlay's mount options, which fit in a page.
	ScratchDir = "/run/scratch"
)

// Guest is the outcome of the boot. Its secrets are in memory only: the files they came from are gone.
type Guest struct {
	Config *layout.BootConfig
	// RegistryCA holds PEM certificates; empty if the build gave none.
	RegistryCA []byte
	// RegistryAuth holds registry credentials in the auths format; nil if the build gave none.
	RegistryAuth *keys.Secret
	// ImageKeys are the image keys that the build gave, maybe none.
	ImageKeys *file.Store
	// Secrets are the resources that sealed secrets name, maybe none.
	Secrets *file.Store
	// Stages says how long each step took, in order.
	Stages []Stage
}

// Stage is one step of the boot.
type Stage struct {
	Name     string
	Duration time.Duration
}

// booter carries the state from step to step.
type booter struct {
	Options
	guest *Guest
}

// Run takes the guest from the kernel's hand-over to the root file system. After an error the caller must power off:
// some steps have happened and none is undone, but the secrets in the initramfs are wiped in any case.
func Run(ctx context.Context, o Options) (*Guest, error) {
	if os.Getpid() != 1 {
		return nil, errors.New("boot: not PID 1")
	}
	if o.DiskTimeout == 0 {
		o.DiskTimeout = DefaultDiskTimeout
	}
	b := &booter{Options: o, guest: &Guest{}}
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"mounts", b.mounts},
		{"config", b.config},
		{"command-line", b.commandLine},
		{"modules", b.modules},
		{"entropy", b.entropy},
		{"disk", b.disk},
		{"secrets", b.secrets},
		{"scratch", b.scratch},
		{"switch-root", b.switchRoot},
		{"harden", b.harden},
	}
	for _, s := range steps {
		start := time.Now()
		if err := s.run(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("boot step %s: %w", s.name, err), wipeTree(layout.SecretsDir))
		}
		b.guest.Stages = append(b.guest.Stages, Stage{s.name, time.Since(start)})
	}
	return b.guest, nil
}

func (b *booter) config(context.Context) (err error) {
	b.guest.Config, err = readConfig()
	return err
}

// disk finds, unlocks, verifies and mounts the root disk.
func (b *booter) disk(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.DiskTimeout)
	defer cancel()
	root := b.guest.Config.Root
	header, err := readHeader(b.guest.Config)
	if err != nil {
		return err
	}
	device, err := b.Volumes.Find(ctx, header)
	if err != nil {
		return err
	}
	b.Log.Info("root disk found", "device", device)
	plain, err := b.Volumes.Unlock(ctx, device)
	if err != nil {
		return err
	}
	verified, err := b.Volumes.Verify(plain, root.Verity)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	return mountRoot(verified)
}

// scratch makes the place for images and writable layers, and carries the tools over to it.
func (b *booter) scratch(context.Context) error {
	if err := apply(scratchMounts()); err != nil {
		return err
	}
	b.Log.Warn("scratch is a tmpfs: images and containers' files live in guest memory, at most half of it")
	for from, to := range map[string]string{
		layout.RuntimePath: RuntimePath,
		filepath.Join(layout.PauseRootfs, layout.PausePath): filepath.Join(PauseRootfs, layout.PausePath),
	} {
		if err := copyExecutable(from, to); err != nil {
			return err
		}
	}
	return nil
}

func copyExecutable(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755) //nolint:gosec // G306: executables that containers' runtimes start
}
