// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package unpack turns a layer's tar stream into a folder that overlayfs takes as a lower layer: it decompresses, and
// writes files with whiteouts as overlayfs has them (character device 0:0, trusted.overlay.opaque).
//
// The stream is not trusted until it has ended, so everything in it is bounded, and nothing that it names lies outside
// the folder. It runs in the calling process: no chroot, no child process.
package unpack
