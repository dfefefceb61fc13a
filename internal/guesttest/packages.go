// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guesttest

import "github.com/cloister-cc/cloister/initramfs"

// Package is a package whose tests run in the guest.
type Package struct {
	// Path is the package's folder, below the module's root.
	Path string
	// Exclude is a regular expression of tests that do not run in the guest, as go test's -skip has it.
	Exclude string
	// Why says why Exclude excludes them.
	Why string
	// Files are further files that the tests read, below the module's root.
	Files []string
	// MaySkip are the tests that may skip themselves in the guest; every other skip is a failure.
	MaySkip []string
	// Long runs the package's tests without -test.short.
	Long bool
}

// Packages returns the packages whose tests run in the guest: all that are linked into the agent and have tests, and
// the writers of formats that the guest reads, whose byte order a big-endian machine shows.
func Packages() []Package {
	return []Package{
		{Path: "agent", Long: true},
		{Path: "agent/boot", Long: true},
		{Path: "agent/cdi", Long: true},
		{Path: "agent/cgroup", Long: true},
		{Path: "agent/config", Files: []string{"docs/configuration.md"}, Long: true},
		{Path: "agent/debugconsole", Long: true},
		{Path: "agent/hooks", Long: true},
		{Path: "agent/kernel", Long: true},
		{Path: "agent/logport", Long: true},
		{Path: "agent/metrics", Long: true},
		{Path: "agent/netdev", Long: true},
		{Path: "agent/oci", Long: true},
		{Path: "agent/proc"},
		{Path: "agent/runtime", Long: true},
		{Path: "attest", Long: true},
		{Path: "guestimage/luks2", Exclude: "^TestCryptsetup", Why: "the guest has no cryptsetup"},
		{Path: "image", Long: true},
		{Path: "image/decrypt", Long: true},
		{Path: "image/registry", Long: true},
		{Path: "image/settings", Long: true},
		{Path: "image/sign", Long: true},
		{Path: "image/store", Long: true},
		{Path: "image/unpack", Long: true},
		{Path: "initramfs/layout", Files: []string{"docs/boot-config.md"}, Long: true},
		{Path: "internal/callers", Long: true},
		{Path: "keys", Long: true},
		{Path: "keys/file", Long: true},
		{Path: "keys/sealed", Long: true},
		{Path: "rpc", Files: []string{"docs/agent.md"}, Long: true},
		{Path: "rpc/pb", Long: true},
		{Path: "rpc/trace", Long: true},
		{Path: "se", Long: true},
		{Path: "se/uvsim", Long: true},
		{Path: "se/xts", Long: true},
		{Path: "storage/disk", Long: true},
		{Path: "storage/dm", Long: true},
		{Path: "storage/luks", Long: true},
		{Path: "storage/mount", Long: true},
		{Path: "storage/share", Long: true},
		{Path: "storage/verity", Long: true},
		{Path: "storage/volume", MaySkip: []string{"TestKernelHugePages"}, Long: true},
	}
}

// hostOnly are packages that are linked into the agent but whose tests run on the build host alone.
func hostOnly() map[string]string {
	return map[string]string{"cmd/cloister-agent": "its test runs the go tool"}
}

// extraModules are what tests need beside the modules of a real guest.
func extraModules() []initramfs.Want {
	return []initramfs.Want{{Name: "loop"}, {Name: "dummy"}, {Name: "veth"}, {Name: "dm-integrity"}, {Name: "fuse"}}
}
