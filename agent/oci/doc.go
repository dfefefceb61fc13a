// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package oci turns the runtime spec that the Kata shim sends into one that holds inside the guest. It is pure: no
// file, no kernel, no clock.
//
// The spec comes from the untrusted host. Convert builds a new spec and takes over only what it knows and has checked,
// so that a field that this package does not mention never reaches the OCI runtime. What would break out of the
// container's part of the guest, or what the guest cannot honour though the container may rely on it, is an error. Some
// of it is offered in a privileged guest, and the error says so.
//
// Left out are:
//   - hooks of the spec, which would run outside of the container; those of the guest come by Options.Hooks;
//   - annotations, each of them: the OCI runtime takes orders from some (run.oci.*), and needs none;
//   - SELinux and AppArmor labels, of which the guest has none;
//   - limits on CPU and memory nodes and on block devices, which are those of the host, and limits whose controller or
//     page size the guest does not have.
//
// Result.Notes names what a container might miss of it.
//
// The format is that of the OCI runtime spec, https://github.com/opencontainers/runtime-spec.
package oci
