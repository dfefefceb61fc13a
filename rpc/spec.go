// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// The wire form of the OCI spec (oci.proto) knows no "not set". Where the runtime spec has a pointer, the zero value of
// the wire means not set, unless a comment says otherwise. What the wire form can carry and a Linux guest cannot use is
// refused instead of dropped.

// specFromPB translates an OCI spec. It checks what has no place in the runtime spec's types and nothing else: agent/oci
// decides what of it holds inside the guest.
func specFromPB(in *pb.Spec) (*specs.Spec, error) {
	if in.GetSolaris() != nil || in.GetWindows() != nil {
		return nil, unsupported("OCI spec: a part for Solaris or Windows in a Linux guest")
	}
	out := &specs.Spec{
		Version:     in.GetVersion(),
		Hostname:    in.GetHostname(),
		Mounts:      convert(in.GetMounts(), mountFromPB),
		Hooks:       hooksFromPB(in.GetHooks()),
		Annotations: in.GetAnnotations(),
	}
	if p := in.GetProcess(); p != nil {
		process, err := processFromPB(p)
		if err != nil {
			return nil, err
		}
		out.Process = process
	}
	if r := in.GetRoot(); r != nil {
		out.Root = &specs.Root{Path: r.GetPath(), Readonly: r.GetReadonly()}
	}
	if l := in.GetLinux(); l != nil {
		linux, err := linuxFromPB(l)
		if err != nil {
			return nil, err
		}
		out.Linux = linux
	}
	return out, nil
}

// processFromPB translates a process. oom_score_adj is always set, so that no container inherits the agent's own.
func processFromPB(in *pb.Process) (*specs.Process, error) {
	score := in.GetOOMScoreAdj()
	if score < -1000 || score > 1000 {
		return nil, invalid("OCI spec: oom_score_adj %d is not between -1000 and 1000", score)
	}
	adj := int(score)
	out := &specs.Process{
		Terminal:        in.GetTerminal(),
		Args:            in.GetArgs(),
		Env:             in.GetEnv(),
		Cwd:             in.GetCwd(),
		NoNewPrivileges: in.GetNoNewPrivileges(),
		ApparmorProfile: in.GetApparmorProfile(),
		OOMScoreAdj:     &adj,
		SelinuxLabel:    in.GetSelinuxLabel(),
		Rlimits: convert(in.GetRlimits(), func(r *pb.POSIXRlimit) specs.POSIXRlimit {
			return specs.POSIXRlimit{Type: r.GetType(), Hard: r.GetHard(), Soft: r.GetSoft()}
		}),
	}
	if b := in.GetConsoleSize(); b != nil {
		out.ConsoleSize = &specs.Box{Height: uint(b.GetHeight()), Width: uint(b.GetWidth())}
	}
	if u := in.GetUser(); u != nil {
		out.User = specs.User{
			UID: u.GetUID(), GID: u.GetGID(), AdditionalGids: u.GetAdditionalGids(), Username: u.GetUsername(),
		}
	}
	if c := in.GetCapabilities(); c != nil {
		out.Capabilities = &specs.LinuxCapabilities{
			Bounding: c.GetBounding(), Effective: c.GetEffective(), Inheritable: c.GetInheritable(),
			Permitted: c.GetPermitted(), Ambient: c.GetAmbient(),
		}
	}
	return out, nil
}

func mountFromPB(in *pb.Mount) specs.Mount {
	return specs.Mount{
		Destination: in.GetDestination(), Source: in.GetSource(), Type: in.GetType(), Options: in.GetOptions(),
	}
}

func hooksFromPB(in *pb.Hooks) *specs.Hooks {
	if in == nil {
		return nil
	}
	return &specs.Hooks{
		Prestart:        convert(in.GetPrestart(), hookFromPB), //nolint:staticcheck // SA1019: deprecated, but the shim can send it
		Poststart:       convert(in.GetPoststart(), hookFromPB),
		Poststop:        convert(in.GetPoststop(), hookFromPB),
		CreateRuntime:   convert(in.GetCreateRuntime(), hookFromPB),
		CreateContainer: convert(in.GetCreateContainer(), hookFromPB),
		StartContainer:  convert(in.GetStartContainer(), hookFromPB),
	}
}

func hookFromPB(in *pb.Hook) specs.Hook {
	return specs.Hook{
		Path: in.GetPath(), Args: in.GetArgs(), Env: in.GetEnv(), Timeout: optional(int(in.GetTimeout())),
	}
}

// convert maps a list; an empty one becomes nil.
func convert[In, Out any](in []In, f func(In) Out) []Out {
	if len(in) == 0 {
		return nil
	}
	out := make([]Out, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

// optional returns a pointer to v, or nil for the zero value.
func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
