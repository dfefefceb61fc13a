// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package testbed brings everything that is needed to run a guest of an architecture on a machine without KVM into one
// cache folder: QEMU, the vsock device backend, a kernel with its modules, a static OCI runtime, the pause process, a
// busybox and a registry. Packages come from Debian by package debian; the runtime and the pause process are built.
//
// It runs on the build host only.
package testbed
