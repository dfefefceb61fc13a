// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package guestimage builds a whole guest on the build host: an encrypted root disk, the initramfs that alone can
// unlock it, and the kernel, in one output folder that Load describes. It needs no privileges and starts no program.
//
// The disk key is made here, goes into the initramfs and nowhere else. Until the initramfs is sealed (IBM Secure
// Execution encrypts and signs it for one machine), whoever reads the output folder holds the key.
//
// It is build-host code: it may import anything but the agent, and is never linked into it.
package guestimage
