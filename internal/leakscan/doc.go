// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package leakscan searches what a host has held of a guest (disks, images, captures, logs) for secrets that it must not
// have seen.
//
// A secret is found raw, in hexadecimal of either case, in base64 of both alphabets at each of its three alignments, and
// all of these inside gzip and zstd streams, which may begin anywhere and lie in each other. Captures of the network are
// searched as they are and as the streams of their TCP connections.
//
// A search that finds nothing proves nothing unless it would have found something: each artefact comes with a control,
// its twin without encryption, in which the same search must find a secret. If it does not, the scan is blind, and that is
// an error as much as a finding.
//
// Not found are secrets that are encoded in other ways, or wrapped in lines.
package leakscan
