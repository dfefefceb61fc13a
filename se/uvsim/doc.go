// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package uvsim is a simulator of what hypervisor, KVM and ultravisor do when a machine of IBM Z starts an image of
// Secure Execution: with the private host keys, which a real machine never shows, it makes their checks in their order,
// answers with their return codes, and opens the image.
//
// It is for tests and demonstrations on machines without the hardware, and protects nothing. What it covers is what the
// ultravisor covers: header, key slots, components. The first bytes of an image (the short PSW, metadata and stage3a)
// are in the clear and checked by nobody: a host that changes them starts a guest that never reaches a secret, because
// only the ultravisor starts what is in the components.
//
// Where a reason code is not public it is 0.
package uvsim
