// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/rpc/pb/types"
)

// maxID bounds the ids of containers, processes and sandboxes, in bytes.
const maxID = 256

// validID tells whether id matches ^[a-zA-Z0-9][a-zA-Z0-9_.-]+$ and is not too long; ids become names of folders.
func validID(id string) bool {
	if len(id) < 2 || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// shorten cuts an id for an error text.
func shorten(id string) string { return id[:min(len(id), 64)] }

func checkContainerID(id string) error {
	if !validID(id) {
		return fmt.Errorf("container %q: %w", shorten(id), agent.ErrInvalidContainerID)
	}
	return nil
}

// processID checks the ids of a request about a process and returns its exec id, which is empty for a container's init
// process. The shim names that one by an empty exec id or by the container's id.
func processID(r interface {
	GetContainerId() string
	GetExecId() string
},
) (execID string, err error) {
	if err := checkContainerID(r.GetContainerId()); err != nil {
		return "", err
	}
	execID = r.GetExecId()
	if execID == "" || execID == r.GetContainerId() {
		return "", nil
	}
	if !validID(execID) {
		return "", invalid("exec id %q is not well formed", shorten(execID))
	}
	return execID, nil
}

// sandboxConfig translates a CreateSandboxRequest.
func sandboxConfig(r *pb.CreateSandboxRequest) (agent.SandboxConfig, error) {
	switch {
	case !validID(r.GetSandboxId()):
		return agent.SandboxConfig{}, invalid("sandbox id %q is not well formed", shorten(r.GetSandboxId()))
	case len(r.GetHostname()) > maxID:
		return agent.SandboxConfig{}, invalid("host name is longer than %d bytes", maxID)
	case len(r.GetKernelModules()) > 0:
		return agent.SandboxConfig{}, unsupported("kernel modules of the host's choice are not loaded; name them when the guest is built")
	}
	storages, err := storagesFromPB(r.GetStorages())
	if err != nil {
		return agent.SandboxConfig{}, err
	}
	return agent.SandboxConfig{
		ID: r.GetSandboxId(), Hostname: r.GetHostname(), DNS: r.GetDns(), Storages: storages,
		SharePIDNS: r.GetSandboxPidns(), GuestHookPath: r.GetGuestHookPath(),
	}, nil
}

// containerConfig translates a CreateContainerRequest.
func containerConfig(r *pb.CreateContainerRequest) (agent.ContainerConfig, error) {
	if err := checkContainerID(r.GetContainerId()); err != nil {
		return agent.ContainerConfig{}, err
	}
	switch {
	case r.GetOCI() == nil:
		return agent.ContainerConfig{}, invalid("the OCI spec is missing")
	case len(r.GetDevices()) > 0:
		return agent.ContainerConfig{}, unsupported("device %q: devices are not supported", shorten(r.GetDevices()[0].GetContainerPath()))
	case len(r.GetSharedMounts()) > 0:
		return agent.ContainerConfig{}, unsupported("shared mounts are not supported")
	case r.GetStringUser() != nil:
		return agent.ContainerConfig{}, unsupported("users by name are not supported; give numeric ids in the OCI spec")
	case r.GetStdinPort() != 0 || r.GetStdoutPort() != 0 || r.GetStderrPort() != 0:
		return agent.ContainerConfig{}, unsupported("standard streams on vsock ports of their own are not supported")
	}
	spec, err := specFromPB(r.GetOCI())
	if err != nil {
		return agent.ContainerConfig{}, err
	}
	storages, err := storagesFromPB(r.GetStorages())
	if err != nil {
		return agent.ContainerConfig{}, err
	}
	return agent.ContainerConfig{ID: r.GetContainerId(), Spec: spec, Storages: storages, SandboxPIDNS: r.GetSandboxPidns()}, nil
}

// execProcess checks an ExecProcessRequest and returns the process that it asks for.
func execProcess(r *pb.ExecProcessRequest) (*specs.Process, error) {
	if err := checkContainerID(r.GetContainerId()); err != nil {
		return nil, err
	}
	switch {
	case !validID(r.GetExecId()):
		return nil, invalid("exec id %q is not well formed", shorten(r.GetExecId()))
	case r.GetExecId() == r.GetContainerId():
		return nil, fmt.Errorf("exec id %q: %w", shorten(r.GetExecId()), agent.ErrAlreadyExists)
	case r.GetProcess() == nil || len(r.GetProcess().GetArgs()) == 0:
		return nil, invalid("the process to execute is missing")
	case r.GetStringUser() != nil:
		return nil, unsupported("users by name are not supported; give numeric ids in the process")
	case r.GetStdinPort() != 0 || r.GetStdoutPort() != 0 || r.GetStderrPort() != 0:
		return nil, unsupported("standard streams on vsock ports of their own are not supported")
	}
	p, err := processFromPB(r.GetProcess())
	if err != nil {
		return nil, err
	}
	if r.GetProcess().GetOOMScoreAdj() == 0 { // what the shim sends; the container's own is meant
		p.OOMScoreAdj = nil
	}
	return p, nil
}

func storagesFromPB(in []*pb.Storage) ([]agent.Storage, error) {
	var out []agent.Storage
	for _, s := range in {
		if s.GetDriver() == "" {
			return nil, invalid("storage of %q: the driver is missing", shorten(s.GetMountPoint()))
		}
		storage := agent.Storage{
			Driver: s.GetDriver(), DriverOptions: s.GetDriverOptions(), Source: s.GetSource(),
			FSType: s.GetFstype(), Options: s.GetOptions(), MountPoint: s.GetMountPoint(),
		}
		if g := s.GetFsGroup(); g != nil {
			storage.FSGroup = &agent.FSGroup{
				GID: g.GetGroupId(), OnRootMismatch: g.GetGroupChangePolicy() == types.FSGroupChangePolicy_OnRootMismatch,
			}
		}
		out = append(out, storage)
	}
	return out, nil
}
