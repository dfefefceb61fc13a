// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"os"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/rpc/pb"
)

// diagnosticTermination is the only kind of diagnostic data that there is.
const diagnosticTermination = "termination_log"

// GetDiagnosticData serves the RPC of that name.
func (s *agentService) GetDiagnosticData(ctx context.Context, r *pb.GetDiagnosticDataRequest) (*pb.GetDiagnosticDataResponse, error) {
	if r.GetLogType() != diagnosticTermination {
		return nil, invalid("diagnostic data %q are not known, only %s is", shorten(r.GetLogType()), diagnosticTermination)
	}
	if err := checkContainerID(r.GetContainerId()); err != nil {
		return nil, err
	}
	text, err := s.sandbox.TerminationLog(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &pb.GetDiagnosticDataResponse{Data: text}, nil
}

// CopyFile serves the RPC of that name.
func (s *agentService) CopyFile(ctx context.Context, r *pb.CopyFileRequest) (*emptypb.Empty, error) {
	return empty(s.sandbox.CopyFile(ctx, agent.File{
		Path: r.GetPath(), Size: r.GetFileSize(), Offset: r.GetOffset(), Mode: r.GetFileMode(), DirMode: r.GetDirMode(),
		UID: r.GetUid(), GID: r.GetGid(), Data: r.GetData(),
	}))
}

// UpdateEphemeralMounts serves the RPC of that name.
func (s *agentService) UpdateEphemeralMounts(ctx context.Context, r *pb.UpdateEphemeralMountsRequest) (*emptypb.Empty, error) {
	storages, err := storagesFromPB(r.GetStorages())
	if err != nil {
		return nil, err
	}
	return empty(s.sandbox.UpdateEphemeralMounts(ctx, storages))
}

// RemoveStaleVirtiofsShareMounts serves the RPC of that name. It always succeeds: the shim would not stop a container
// otherwise.
func (s *agentService) RemoveStaleVirtiofsShareMounts(
	ctx context.Context, _ *pb.RemoveStaleVirtiofsShareMountsRequest,
) (*emptypb.Empty, error) {
	s.sandbox.DropStaleMounts(ctx)
	return &emptypb.Empty{}, nil
}

// SetGuestDateTime serves the RPC of that name.
func (s *agentService) SetGuestDateTime(_ context.Context, r *pb.SetGuestDateTimeRequest) (*emptypb.Empty, error) {
	if r.GetUsec() < 0 || r.GetUsec() >= 1_000_000 || r.GetSec() < 0 {
		return nil, invalid("%d s and %d µs are no time", r.GetSec(), r.GetUsec())
	}
	return empty(s.machine.SetTime(r.GetSec(), r.GetUsec()))
}

// maxReseed bounds the data of ReseedRandomDev, in bytes; the shim sends 512.
const maxReseed = 64 << 10

// ReseedRandomDev serves the RPC of that name.
func (s *agentService) ReseedRandomDev(_ context.Context, r *pb.ReseedRandomDevRequest) (*emptypb.Empty, error) {
	if n := len(r.GetData()); n == 0 || n > maxReseed {
		return nil, invalid("%d bytes of random data, where 1 to %d are taken", n, maxReseed)
	}
	return empty(s.machine.Reseed(r.GetData()))
}

// GetGuestDetails serves the RPC of that name.
func (s *agentService) GetGuestDetails(_ context.Context, r *pb.GuestDetailsRequest) (*pb.GuestDetailsResponse, error) {
	d := s.machine.Details()
	out := &pb.GuestDetailsResponse{AgentDetails: &pb.AgentDetails{
		Version:         s.version,
		InitDaemon:      os.Getpid() == 1,
		StorageHandlers: d.StorageDrivers,
		SupportsSeccomp: d.Seccomp,
	}}
	if d.Seccomp {
		out.AgentDetails.ExtraFeatures = []string{"seccomp"}
	}
	if r.GetMemBlockSize() {
		out.MemBlockSizeBytes = d.MemoryBlock
	}
	if r.GetMemHotplugProbe() {
		out.SupportMemHotplugProbe = d.MemoryProbe
	}
	return out, nil
}

// GetMetrics serves the RPC of that name.
func (s *agentService) GetMetrics(context.Context, *pb.GetMetricsRequest) (*pb.Metrics, error) {
	text, err := s.machine.Metrics()
	if err != nil {
		return nil, err
	}
	return &pb.Metrics{Metrics: text}, nil
}
