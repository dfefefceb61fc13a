// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package debian fetches Debian packages of any suite and architecture into a cache folder, without root and without
// touching the machine's own package state. It drives apt-get and dpkg with lists, state and cache below that folder.
//
// What a package may hold is decided by Debian's archive keyring: apt verifies the suite's signature, the lists' and
// each package's sha256; the sha256 is recorded, and a package is fetched again only when the lists name another one.
//
// It runs on the build host only. It imports nothing of this module.
package debian
