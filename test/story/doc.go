// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package story holds the parts of which the demo, the end-to-end tests and the benchmarks make their stories: a
// private certificate authority, a real registry on loopback with TLS and a password, an encrypted image in it, a
// guest built for it, and that guest in QEMU.
package story
