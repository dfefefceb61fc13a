// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package store keeps unpacked image layers by digest in one folder of the guest's scratch space, and mounts them as
// root file systems of containers.
//
//	layers/<algorithm>/<digest>  verified layers, each the digest of its blob in the registry
//	l/<number>                   short links to them, because mount options fit in one page
//	staging/<number>             layers that are not verified yet
//	containers/<id>/{upper,work} what a container writes
//
// A layer gets its place by one rename, once its caller has verified all of it. What the store knows is kept in memory:
// scratch space lives no longer than the guest, and whatever is found there at start is dropped.
package store
