// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package registry gets manifests and blobs from an OCI registry for a guest that trusts nothing on the way: HTTPS
// only, certificates checked against the given pool and never the system's, no proxy, every answer bounded, and every
// byte compared with the digest that was asked for.
//
// The wire protocol is the OCI distribution spec 1.1 (and Docker's registry API V2), by containerd's resolver.
package registry
