// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import "fmt"

// Architectures that a guest can have, as Go and Debian name them.
const (
	ArchS390x = "s390x"
	ArchAMD64 = "amd64"
)

// Architectures returns all of them, the first being the default.
func Architectures() []string { return []string{ArchS390x, ArchAMD64} }

// GuestModules returns the kernel modules that a guest needs, in the order in which they are best loaded. There is no
// modprobe in the guest, so the algorithms that dm-crypt, dm-verity and erofs ask the kernel's crypto API for by name
// have to stand here as well. Modules that a kernel has built in may stand here too.
func GuestModules(arch string) ([]Want, error) {
	var want []Want
	switch arch {
	case ArchS390x:
		want = []Want{
			{Name: "s390-trng", Optional: true},   // entropy; ENODEV before z14
			{Name: "aes_s390", Optional: true},    // CPACF: AES-XTS in the processor
			{Name: "sha256_s390", Optional: true}, // CPACF: verity's hash
		}
	case ArchAMD64:
		want = []Want{
			{Name: "aesni-intel", Optional: true},
			{Name: "sha256-ssse3", Optional: true},
			{Name: "crc32c-intel", Optional: true},
		}
	default:
		return nil, fmt.Errorf("architecture %q is neither %s nor %s", arch, ArchS390x, ArchAMD64)
	}
	return append(want, commonModules()...), nil
}

func commonModules() []Want {
	return []Want{
		{Name: "virtio_pci"}, // part of recent kernels, a module of 6.1
		{Name: "virtio_blk"},
		{Name: "virtio_net"},
		{Name: "xts"},
		{Name: "ecb", Optional: true}, // dm-crypt's aes-xts-plain64
		{Name: "dm-mod"},
		{Name: "dm-crypt"},
		{Name: "dm-verity"},
		{Name: "crc32c_generic", Optional: true}, // erofs superblock; gone from kernels since 6.16
		{Name: "erofs"},
		{Name: "overlay"},
		{Name: "vsock"},
		{Name: "vmw_vsock_virtio_transport"},
	}
}
