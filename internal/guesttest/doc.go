// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package guesttest runs the tests of guest packages where those packages live: as root in a guest of the wanted
// architecture, with the kernel, the modules and the OCI runtime that a real guest has. The test binaries are
// cross-compiled on the build host and carried in by an initramfs; a small PID 1 (folder init) runs them.
//
// What runs in the guest is the list in packages.go. In the guest, tests find CLOISTER_GUEST=1 and REQUIRE_QEMU=1 in
// the environment, a static crun, a pause process and a busybox by the paths in CRUN, CLOISTER_PAUSE and
// CLOISTER_BUSYBOX, and an empty scratch disk of 32 MiB by CLOISTER_TEST_DISK.
package guesttest
