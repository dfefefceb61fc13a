// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/internal/testbed/guestrun"
)

// newRunCommand returns "cloister run".
func newRunCommand() *cobra.Command {
	var o guestrun.Options
	var noNetwork bool
	var console string
	cmd := &cobra.Command{
		Use:   "run GUEST",
		Short: "Run a guest in QEMU",
		Long: "run starts the guest of a folder that 'cloister build' wrote, in the emulator that 'cloister setup' fetched. It\n" +
			"prints the address of the guest's agent, then the guest's console, and ends when the guest powers off.\n" +
			"It protects nothing: QEMU sees the guest's memory, and the initramfs in the folder holds the disk's key.\n\n" +
			"With --image, kernel, initramfs and command line are those of an image that 'cloister se open --unseal' wrote.\n" +
			"With --capture, all that the host holds of the guest is kept in a folder: console.log, network.pcap, vsock, qemu.log.\n" +
			"'cloister leakscan' searches it.",
		Example: "  cloister run guest/ --console console.log &\n  cloister ctl --address ADDRESS check",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			o.GuestDir, o.Network, o.Console, o.Warn = args[0], !noNetwork, cmd.OutOrStdout(), cmd.ErrOrStderr()
			o.Started = func(address string) error {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), address)
				return err
			}
			if console != "" {
				f, openErr := os.Create(console)
				if openErr != nil {
					return fmt.Errorf("open console file: %w", openErr)
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				o.Console = f
			}
			return guestrun.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.CacheDir, "cache", "", "cache folder of 'cloister setup' (default: cloister in the user's cache folder)")
	f.StringVar(&o.WorkDir, "work-dir", "", "folder for the guest's sockets (default: a temporary one)")
	f.StringVar(&o.Image, "image", "", "unsealed image of Secure Execution to start")
	f.StringVar(&o.Capture, "capture", "", "folder for what the host holds of the guest")
	f.StringVar(&o.Disk, "disk", "", "disk image to attach in place of the guest's root disk")
	f.IntVar(&o.MemoryMiB, "memory", 1024, "memory of the guest in MiB")
	f.IntVar(&o.CPUs, "cpus", 1, "processors of the guest")
	f.BoolVar(&noNetwork, "no-network", false, "no network device")
	f.StringVar(&console, "console", "", "file that gets the console (default: standard output)")
	return cmd
}
