// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import "encoding/binary"

// Addresses and fixed values of an image.
const (
	shortPSW        = 0x0008000180011000 // 31/64-bit addressing, execution begins at 0x11000 in stage3a
	metadataAddress = 0xc000
	metadataMagic   = "SeImgLnx"
	metadataSize    = 28
	metadataVersion = 1
	stage3aAddress  = 0x10000
	stage3aArgsSize = 24
	// pvimg never puts the header below this, however small stage3a is.
	minHeaderAddress = 0x14000
	stage3bArgsSize  = 64
	// pswMask is 64-bit addressing: the state in which stage3b and the kernel start.
	pswMask        = 0x0000000180000000
	kernelEntry    = 0x10000
	minStage3aSize = 0x1000 + stage3aArgsSize
	maxStageSize   = 1 << 20
)

// Places in an s390x kernel image.
const (
	kernelMagicAddress  = 0x10008
	kernelMagic         = "S390EP"
	commandLineSizeAt   = 0x10430
	defaultCommandLine  = 896 // where the kernel does not say
	kernelHeadSize      = commandLineSizeAt + 8
	elfMagic            = "\x7fELF"
	maxCommandLineBytes = 1 << 20
)

// stage3aArgs tell stage3a where header and IPIB are. Offsets count from the address of the arguments themselves, which
// are the last bytes of stage3a.
type stage3aArgs struct {
	headerOffset, headerSize, ipibOffset uint64
}

func (a stage3aArgs) encode() []byte {
	data := make([]byte, stage3aArgsSize)
	binary.BigEndian.PutUint64(data, a.headerOffset)
	binary.BigEndian.PutUint64(data[8:], a.headerSize)
	binary.BigEndian.PutUint64(data[16:], a.ipibOffset)
	return data
}

func parseStage3aArgs(data []byte) stage3aArgs {
	return stage3aArgs{
		headerOffset: binary.BigEndian.Uint64(data), headerSize: binary.BigEndian.Uint64(data[8:]), ipibOffset: binary.BigEndian.Uint64(data[16:]),
	}
}

// Region is a part of the guest's memory.
type Region struct{ Address, Size uint64 }

// BootArgs tell stage3b where the parts of the guest are, with their sizes before they were padded to pages. They are the
// last 64 bytes of stage3b.
type BootArgs struct {
	// Kernel, CommandLine (with the zero byte that ends it) and Ramdisk; one without address and size is not there.
	Kernel, CommandLine, Ramdisk Region
	// PSWMask and PSWAddress are the state in which the kernel starts.
	PSWMask, PSWAddress uint64
}

func (a BootArgs) encode() []byte {
	var data []byte
	for _, v := range []uint64{
		a.Kernel.Address, a.Kernel.Size, a.CommandLine.Address, a.CommandLine.Size, a.Ramdisk.Address, a.Ramdisk.Size,
		a.PSWMask, a.PSWAddress,
	} {
		data = binary.BigEndian.AppendUint64(data, v)
	}
	return data
}

// FindBootArgs looks for the arguments in the decrypted pages of stage3b, whose size before padding nothing says: from
// the end, it is the first place where the kernel's address is one of the given components, and where the state is that
// in which kernels start. ok is false if there is none.
func FindBootArgs(stage3b []byte, components []Component) (args BootArgs, ok bool) {
	for at := len(stage3b) - stage3bArgsSize; at >= 0; at-- {
		v := func(i int) uint64 { return binary.BigEndian.Uint64(stage3b[at+8*i:]) }
		if v(6) != pswMask || v(7) != kernelEntry {
			continue
		}
		args = BootArgs{
			Kernel: Region{v(0), v(1)}, CommandLine: Region{v(2), v(3)}, Ramdisk: Region{v(4), v(5)}, PSWMask: v(6), PSWAddress: v(7),
		}
		if args.fit(components) {
			return args, true
		}
	}
	return BootArgs{}, false
}

// fit says whether every region begins a component and ends in it.
func (a BootArgs) fit(components []Component) bool {
	if a.Kernel.Size == 0 {
		return false
	}
	for _, r := range []Region{a.Kernel, a.CommandLine, a.Ramdisk} {
		if r.Size != 0 && !r.in(components) {
			return false
		}
	}
	return true
}

func (r Region) in(components []Component) bool {
	for _, c := range components {
		if c.Address == r.Address {
			return r.Size <= c.Size
		}
	}
	return false
}
