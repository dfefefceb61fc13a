// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package guestrun runs guests in the emulator of the test bed.
//
// It stands apart from package testbed because it knows package guestimage, whose own parts are tested with the test bed.
package guestrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/internal/testbed"
)

// Options say which guest Run runs, and how.
type Options struct {
	// GuestDir is a folder that guestimage.Build wrote.
	GuestDir string
	// CacheDir is the cache folder of the test bed; "" means testbed.DefaultCacheDir.
	CacheDir string
	// WorkDir holds the sockets; "" means a new folder that is removed in the end.
	WorkDir string
	// Image is an unsealed image of Secure Execution, which brings kernel, initramfs and command line; "" means those of the
	// folder.
	Image string
	// Capture is a folder, made if need be, for what the host holds of the guest: console, network, vsock, QEMU's log; ""
	// means none.
	Capture string
	// Disk is used in place of the guest's root disk; "" means the guest's.
	Disk string
	// MemoryMiB and CPUs are the guest's memory in MiB and its processors; 0 means the defaults of package qemu.
	MemoryMiB, CPUs int
	// Network gives the guest a network device, which reaches the host's loopback as 10.0.2.2.
	Network bool
	// Console gets what the guest writes to its console; nil means nobody does.
	Console io.Writer
	// Warn gets what the user should know before the guest starts; nil means nobody does.
	Warn io.Writer
	// Started is called with the agent's address once QEMU runs, before the agent listens; nil means not.
	Started func(address string) error
}

// Run runs a guest in the emulator of the test bed that testbed.Setup made, until it powers off or ctx ends.
func Run(ctx context.Context, o Options) (err error) {
	guest, err := guestimage.Load(o.GuestDir)
	if err != nil {
		return err
	}
	if guest.Arch == initramfs.ArchAMD64 && o.Warn != nil {
		fmt.Fprintf(o.Warn, "warning: %s\n", guestimage.Unprotected)
	}
	bed, err := testbed.Load(o.CacheDir, guest.Arch)
	if err != nil {
		return err
	}
	work := o.WorkDir
	if work == "" {
		if work, err = os.MkdirTemp("", "cloister-run-"); err != nil {
			return fmt.Errorf("make work folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	}
	disk := o.Disk
	if disk == "" {
		disk = filepath.Join(o.GuestDir, guest.Files.Disk.Name)
	}
	if o.Capture != "" {
		if err := os.MkdirAll(o.Capture, 0o700); err != nil {
			return fmt.Errorf("make capture folder: %w", err)
		}
	}
	kernel, initrd, commandLine := filepath.Join(o.GuestDir, guest.Files.Kernel.Name), filepath.Join(o.GuestDir, guest.Files.Initramfs.Name), guest.CommandLine
	if o.Image != "" {
		kernel, initrd, commandLine = o.Image, "", ""
	}
	vm, err := qemu.Start(ctx, qemu.Config{
		Arch: guest.Arch, Dir: bed.QEMUDir, Kernel: kernel, Initrd: initrd, Append: commandLine, Capture: o.Capture,
		ReadOnlyDisks: []string{disk}, CPUs: o.CPUs, MemoryMiB: o.MemoryMiB, Network: o.Network,
		Vsock: true, VsockBackend: bed.VsockBackend, WorkDir: work, Console: o.Console,
	})
	if err != nil {
		return err
	}
	if o.Started != nil {
		if err := o.Started(vm.AgentAddress()); err != nil {
			return errors.Join(err, vm.Stop())
		}
	}
	// Start's ctx ends the guest; what is waited for is the end of its processes.
	if err := vm.Wait(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return ctx.Err()
}
