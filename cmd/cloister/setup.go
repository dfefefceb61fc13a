// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/testbed"
)

// archAll stands for every architecture on the command line.
const archAll = "all"

// newSetupCommand returns "cloister setup".
func newSetupCommand() *cobra.Command {
	var arch, cache string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Fetch and build what is needed to run guests on this machine",
		Long: "setup fills a cache folder with QEMU, a kernel and its modules, a static crun, the pause process, a registry and\n" +
			"a busybox, all from the Debian mirror that this machine uses. It does again only what is missing or out of date.\n" +
			"Libraries and compilers that this machine lacks are installed when it runs as root; otherwise it says which.",
		Example: "  cloister setup --arch s390x\n  cloister setup --arch all --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			archs := []string{arch}
			if arch == archAll {
				archs = initramfs.Architectures()
			} else if !slices.Contains(initramfs.Architectures(), arch) {
				return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--arch is %s or %s", strings.Join(initramfs.Architectures(), ", "), archAll)}
			}
			return runSetup(cmd, archs, cache, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&arch, "arch", initramfs.ArchS390x, "architecture of the guests: s390x, amd64 or all")
	f.StringVar(&cache, "cache", "", "cache folder (default: cloister in the user's cache folder)")
	f.BoolVar(&asJSON, "json", false, "print where everything lies as JSON on standard output")
	return cmd
}

func runSetup(cmd *cobra.Command, archs []string, cache string, asJSON bool) error {
	var mu sync.Mutex
	progress := func(message string) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintln(cmd.ErrOrStderr(), message)
	}
	beds := make(map[string]*testbed.Bed, len(archs))
	for _, a := range archs {
		bed, err := testbed.Setup(cmd.Context(), testbed.Options{Arch: a, CacheDir: cache, Progress: progress})
		if err != nil {
			return err
		}
		beds[a] = bed
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), beds)
	}
	return nil
}
