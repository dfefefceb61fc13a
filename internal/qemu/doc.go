// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package qemu runs a guest in QEMU for tests and for 'cloister run': kernel and initramfs, disks, user networking, a
// console, and a vsock device whose host side is a Unix socket or, where the host kernel has it, AF_VSOCK. It emulates
// the guest's processor (TCG) on every host, since a /dev/kvm that exists does not have to boot a stock kernel.
//
// The options are those of QEMU 10 (qemu-system manual, "Invocation"). It runs on the build host only.
package qemu
