// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package layout is the one leaf that the build host and the guest share: where things lie in the sealed initramfs,
// and the boot config that tells the agent what to do with them. It imports nothing but the standard library.
//
// Everything named here comes out of the sealed initramfs and is therefore as trusted as the agent itself; nothing of
// it may be taken from a disk, the kernel command line or a request.
package layout

import "path"

// Paths in the initramfs. The agent is the kernel's rdinit; all else lies below Dir.
const (
	// AgentPath is the static agent binary, started by the kernel as PID 1.
	AgentPath = "/init"
	// Dir holds every file of ours but AgentPath.
	Dir = "/cloister"
	// BootConfigPath is the boot config, see BootConfig.
	BootConfigPath = Dir + "/boot.json"
	// ManifestPath lists every file of the initramfs with its sha256, written by the build host.
	ManifestPath = Dir + "/manifest.json"
	// RuntimePath is the static OCI runtime (crun).
	RuntimePath = Dir + "/bin/crun"
	// PauseRootfs is the root file system of the built-in pause image; it holds one static binary, PausePath.
	PauseRootfs = Dir + "/pause/rootfs"
	// PausePath is the pause binary as seen inside PauseRootfs.
	PausePath = "/pause"
	// ModulesDir holds the kernel modules, uncompressed, that BootConfig.Modules names.
	ModulesDir = Dir + "/modules"
	// DiskKeyPath is the passphrase of the root disk's LUKS2 keyslot: DiskKeySize random bytes.
	DiskKeyPath = Dir + "/secrets/disk.key"
	// DiskHeaderPath is the pinned copy of the root disk's LUKS2 header. The copy on the disk is never parsed.
	DiskHeaderPath = Dir + "/disk/luks2.header"
	// RegistryCAPath holds PEM certificates that registries are checked against, instead of any system pool.
	RegistryCAPath = Dir + "/registry/ca.pem"
	// RegistryAuthPath holds registry credentials in the auths format of Docker's config.json.
	RegistryAuthPath = Dir + "/secrets/registry-auth.json"
	// ImageKeysDir holds image decryption keys: the key of kbs:///repo/type/tag is the file repo/type/tag.
	ImageKeysDir = Dir + "/secrets/image-keys"
	// ResourcesDir holds what sealed secrets name, and the keys that sign them: kbs:///repo/type/tag is the file
	// repo/type/tag.
	ResourcesDir = Dir + "/secrets/resources"
	// SecretsDir holds every file that is wiped in place once the agent has read it.
	SecretsDir = Dir + "/secrets"
)

// DiskKeySize is the size in bytes of the key at DiskKeyPath (512 bits).
const DiskKeySize = 64

// ModulePath returns the path in the initramfs of a module that BootConfig.Modules names.
func ModulePath(name string) string { return path.Join(ModulesDir, name) }
