// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package oci turns the runtime spec that the Kata shim sends into one that holds inside the guest. It is pure: no
// file, no kernel, no clock.
//
// The spec comes from the untrusted host. Convert builds a new spec and takes over only what it knows and has checked,
// so that a field that this package does not mention never reaches the OCI runtime. Hooks and annotations are left
// out (the OCI runtime would run the one, and takes orders from the other), and so are SELinux and AppArmor labels, of
// which the guest has none. What would break out of the container's part of the guest, or what the guest cannot honour
// though the container may rely on it, is an error.
//
// The format is that of the OCI runtime spec, https://github.com/opencontainers/runtime-spec.
package oci
