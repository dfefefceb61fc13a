// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package boot is the agent's first stage, run once as PID 1 in the initramfs: pseudo file systems, boot config,
// kernel modules, root disk, secrets, and the move to the root file system. Run returns, it never execs, so the code
// that serves afterwards is the code that the initramfs held.
//
// All that it reads comes from the initramfs, but the disks: those are the host's. Of a disk it compares bytes with
// the pinned LUKS2 header and hands the device on; it never parses any. Every failure is an error that ends the boot:
// there is no shell, no retry with less, no way on without the disk.
package boot
