// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/rpc/pb"
)

func linuxFromPB(in *pb.Linux) (*specs.Linux, error) {
	resources, err := resourcesFromPB(in.GetResources())
	if err != nil {
		return nil, err
	}
	out := &specs.Linux{
		UIDMappings: convert(in.GetUIDMappings(), idMappingFromPB),
		GIDMappings: convert(in.GetGIDMappings(), idMappingFromPB),
		Sysctl:      in.GetSysctl(),
		Resources:   resources,
		CgroupsPath: in.GetCgroupsPath(),
		Namespaces: convert(in.GetNamespaces(), func(n *pb.LinuxNamespace) specs.LinuxNamespace {
			return specs.LinuxNamespace{Type: specs.LinuxNamespaceType(n.GetType()), Path: n.GetPath()}
		}),
		Devices:           convert(in.GetDevices(), deviceFromPB),
		Seccomp:           seccompFromPB(in.GetSeccomp()),
		RootfsPropagation: in.GetRootfsPropagation(),
		MaskedPaths:       in.GetMaskedPaths(),
		ReadonlyPaths:     in.GetReadonlyPaths(),
		MountLabel:        in.GetMountLabel(),
	}
	if r := in.GetIntelRdt(); r != nil {
		out.IntelRdt = &specs.LinuxIntelRdt{L3CacheSchema: r.GetL3CacheSchema()}
	}
	return out, nil
}

func idMappingFromPB(in *pb.LinuxIDMapping) specs.LinuxIDMapping {
	return specs.LinuxIDMapping{ContainerID: in.GetContainerID(), HostID: in.GetHostID(), Size: in.GetSize()}
}

// modeBits are the bits of a device's mode that are no type.
const modeBits = 0o7777

// deviceFromPB translates a device node. Owner ids are always set, for 0 is root.
func deviceFromPB(in *pb.LinuxDevice) specs.LinuxDevice {
	uid, gid := in.GetUID(), in.GetGID()
	return specs.LinuxDevice{
		Path: in.GetPath(), Type: in.GetType(), Major: in.GetMajor(), Minor: in.GetMinor(),
		FileMode: optional(os.FileMode(in.GetFileMode() & modeBits)), UID: &uid, GID: &gid,
	}
}

func seccompFromPB(in *pb.LinuxSeccomp) *specs.LinuxSeccomp {
	if in == nil {
		return nil
	}
	return &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(in.GetDefaultAction()),
		Architectures: convert(in.GetArchitectures(), func(a string) specs.Arch { return specs.Arch(a) }),
		Flags:         convert(in.GetFlags(), func(f string) specs.LinuxSeccompFlag { return specs.LinuxSeccompFlag(f) }),
		Syscalls:      convert(in.GetSyscalls(), syscallFromPB),
	}
}

func syscallFromPB(in *pb.LinuxSyscall) specs.LinuxSyscall {
	out := specs.LinuxSyscall{
		Names: in.GetNames(), Action: specs.LinuxSeccompAction(in.GetAction()),
		Args: convert(in.GetArgs(), func(a *pb.LinuxSeccompArg) specs.LinuxSeccompArg {
			return specs.LinuxSeccompArg{
				Index: uint(a.GetIndex()), Value: a.GetValue(), ValueTwo: a.GetValueTwo(), Op: specs.LinuxSeccompOperator(a.GetOp()),
			}
		}),
	}
	if ret, ok := in.GetErrnoRet().(*pb.LinuxSyscall_Errnoret); ok {
		errno := uint(ret.Errnoret)
		out.ErrnoRet = &errno
	}
	return out
}
