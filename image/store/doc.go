// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package store keeps unpacked image layers by digest in one folder of the guest's scratch space, and mounts them as
// root file systems of containers.
//
//	layers/<algorithm>/<digest>  verified layers, each the digest of its blob in the registry
//	l/<number>                   short links to them, because mount options fit in one page
//	staging/<number>             layers that are not verified yet, or not removed yet
//	containers/<id>/{upper,work} what a container writes
//	records/<algorithm>-<digest> one for each layer that outlives the process
//
// A layer gets its place by one rename, once its caller has verified all of it. It stays while somebody holds it: a
// container that has it mounted, or a pull. Others are removed when there is no space, the one that was not used for the
// longest time first.
//
// What the store knows is kept in memory, and what is found at start is dropped: scratch space lives no longer than the
// guest. Config.Keep changes that for folders that only the guest can have written to. A layer's record is then written
// after the layer is in its place and on the disk, and removed before it, so a process that is killed at any point
// leaves layers that are whole, and leftovers that the next start removes.
package store
