// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package e2e holds whole-system stories and attacks: a guest in QEMU, a registry on loopback, and nothing that is not
// real but the missing hardware. Its tests run under `make test-e2e ARCH=…`.
package e2e
