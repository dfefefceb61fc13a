// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/rpc/pb"
)

func resourcesFromPB(in *pb.LinuxResources) (*specs.LinuxResources, error) {
	if in == nil {
		return nil, nil //nolint:nilnil // no resources are no error: the spec's field is optional
	}
	blockIO, err := blockIOFromPB(in.GetBlockIO())
	if err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{
		Devices: convert(in.GetDevices(), deviceRuleFromPB),
		Memory:  memoryFromPB(in.GetMemory()),
		CPU:     cpuFromPB(in.GetCPU()),
		BlockIO: blockIO,
		HugepageLimits: convert(in.GetHugepageLimits(), func(l *pb.LinuxHugepageLimit) specs.LinuxHugepageLimit {
			return specs.LinuxHugepageLimit{Pagesize: l.GetPagesize(), Limit: l.GetLimit()}
		}),
	}
	if p := in.GetPids(); p != nil {
		out.Pids = &specs.LinuxPids{Limit: optional(p.GetLimit())}
	}
	if n := in.GetNetwork(); n != nil {
		out.Network = &specs.LinuxNetwork{
			ClassID: optional(n.GetClassID()),
			Priorities: convert(n.GetPriorities(), func(p *pb.LinuxInterfacePriority) specs.LinuxInterfacePriority {
				return specs.LinuxInterfacePriority{Name: p.GetName(), Priority: p.GetPriority()}
			}),
		}
	}
	return out, nil
}

// deviceRuleFromPB translates a rule of the device cgroup. No device has the major number 0, so that it stands for all
// devices, as -1 does. A minor number of 0 next to a major number is taken literally: reading it as "all" could allow
// more than was meant.
func deviceRuleFromPB(in *pb.LinuxDeviceCgroup) specs.LinuxDeviceCgroup {
	out := specs.LinuxDeviceCgroup{Allow: in.GetAllow(), Type: in.GetType(), Access: in.GetAccess()}
	if major := in.GetMajor(); major > 0 {
		out.Major = &major
		if minor := in.GetMinor(); minor >= 0 {
			out.Minor = &minor
		}
	}
	return out
}

func memoryFromPB(in *pb.LinuxMemory) *specs.LinuxMemory {
	if in == nil {
		return nil
	}
	return &specs.LinuxMemory{
		Limit:            optional(in.GetLimit()),
		Reservation:      optional(in.GetReservation()),
		Swap:             optional(in.GetSwap()),
		Kernel:           optional(in.GetKernel()), //nolint:staticcheck // SA1019: deprecated, but the shim can send it
		KernelTCP:        optional(in.GetKernelTCP()),
		Swappiness:       optional(in.GetSwappiness()),
		DisableOOMKiller: optional(in.GetDisableOOMKiller()),
	}
}

func cpuFromPB(in *pb.LinuxCPU) *specs.LinuxCPU {
	if in == nil {
		return nil
	}
	return &specs.LinuxCPU{
		Shares:          optional(in.GetShares()),
		Quota:           optional(in.GetQuota()),
		Period:          optional(in.GetPeriod()),
		RealtimeRuntime: optional(in.GetRealtimeRuntime()),
		RealtimePeriod:  optional(in.GetRealtimePeriod()),
		Cpus:            in.GetCpus(),
		Mems:            in.GetMems(),
	}
}

func blockIOFromPB(in *pb.LinuxBlockIO) (*specs.LinuxBlockIO, error) {
	if in == nil {
		return nil, nil //nolint:nilnil // no limits are no error: the spec's field is optional
	}
	out := &specs.LinuxBlockIO{
		ThrottleReadBpsDevice:   convert(in.GetThrottleReadBpsDevice(), throttleFromPB),
		ThrottleWriteBpsDevice:  convert(in.GetThrottleWriteBpsDevice(), throttleFromPB),
		ThrottleReadIOPSDevice:  convert(in.GetThrottleReadIOPSDevice(), throttleFromPB),
		ThrottleWriteIOPSDevice: convert(in.GetThrottleWriteIOPSDevice(), throttleFromPB),
	}
	var err error
	if out.Weight, out.LeafWeight, err = weights(in); err != nil {
		return nil, err
	}
	for _, d := range in.GetWeightDevice() {
		w := specs.LinuxWeightDevice{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: d.GetMajor(), Minor: d.GetMinor()}}
		if w.Weight, w.LeafWeight, err = weights(d); err != nil {
			return nil, err
		}
		out.WeightDevice = append(out.WeightDevice, w)
	}
	return out, nil
}

func weights(in interface {
	GetWeight() uint32
	GetLeafWeight() uint32
},
) (weight, leaf *uint16, err error) {
	if in.GetWeight() > math.MaxUint16 || in.GetLeafWeight() > math.MaxUint16 {
		return nil, nil, invalid("OCI spec: block I/O weight %d or %d is above 65535", in.GetWeight(), in.GetLeafWeight())
	}
	return optional(uint16(in.GetWeight())), optional(uint16(in.GetLeafWeight())), nil
}

func throttleFromPB(in *pb.LinuxThrottleDevice) specs.LinuxThrottleDevice {
	return specs.LinuxThrottleDevice{
		LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: in.GetMajor(), Minor: in.GetMinor()}, Rate: in.GetRate(),
	}
}
