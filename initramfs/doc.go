// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package initramfs builds and reads initial RAM file systems on the build host: a reproducible newc cpio writer, a
// strict reader, the closure of kernel modules that a guest loads, and the manifest of what lies in the image.
//
// The newc format is that of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. The same files
// always give the same bytes: entries are sorted by path and numbered in that order, times and owners are zero.
//
// It is build-host code and is not linked into the agent, except for its sub-package layout, which both sides share.
// It imports no other package of this module but layout.
package initramfs
