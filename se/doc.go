// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package se reads and writes images of IBM Secure Execution: a kernel, an initramfs and a command line that only the
// ultravisor of chosen machines can open.
//
// An image is loaded at address 0, so that offsets in the file are addresses of the guest. In the clear it holds a first
// program (stage3a), which hands the rest to the ultravisor; a header, whose confidential part only the owners of the
// host keys can decrypt; and the IPL parameter block (IPIB), which lists the components. The components (kernel,
// initramfs, command line, stage3b) are encrypted page by page with AES-256-XTS, and the header holds digests of them.
//
// The layout is that of pvimg (s390-tools 2.36 and later); images of the older genprotimg are read, too. All numbers are
// big-endian.
package se
