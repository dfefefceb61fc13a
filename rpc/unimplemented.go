// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// unimplemented has the methods of grpc.AgentService that this agent does not offer. A method that is offered is not
// listed here, so that the compiler knows of every method which of the two it is.
type unimplemented struct{}

func notImplemented(method string) error {
	return status.Errorf(codes.Unimplemented, "%s is not implemented by this agent", method)
}

func (unimplemented) ListInterfaces(context.Context, *pb.ListInterfacesRequest) (*pb.Interfaces, error) {
	return nil, notImplemented("ListInterfaces")
}

func (unimplemented) ListRoutes(context.Context, *pb.ListRoutesRequest) (*pb.Routes, error) {
	return nil, notImplemented("ListRoutes")
}

func (unimplemented) AddARPNeighbors(context.Context, *pb.AddARPNeighborsRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("AddARPNeighbors")
}

func (unimplemented) GetIPTables(context.Context, *pb.GetIPTablesRequest) (*pb.GetIPTablesResponse, error) {
	return nil, notImplemented("GetIPTables")
}

func (unimplemented) SetIPTables(context.Context, *pb.SetIPTablesRequest) (*pb.SetIPTablesResponse, error) {
	return nil, notImplemented("SetIPTables")
}

func (unimplemented) MemAgentMemcgSet(context.Context, *pb.MemAgentMemcgConfig) (*emptypb.Empty, error) {
	return nil, notImplemented("MemAgentMemcgSet")
}

func (unimplemented) MemAgentCompactSet(context.Context, *pb.MemAgentCompactConfig) (*emptypb.Empty, error) {
	return nil, notImplemented("MemAgentCompactSet")
}

func (unimplemented) OnlineCPUMem(context.Context, *pb.OnlineCPUMemRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("OnlineCPUMem")
}

func (unimplemented) MemHotplugByProbe(context.Context, *pb.MemHotplugByProbeRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("MemHotplugByProbe")
}

func (unimplemented) AddSwap(context.Context, *pb.AddSwapRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("AddSwap")
}

func (unimplemented) AddSwapPath(context.Context, *pb.AddSwapPathRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("AddSwapPath")
}

func (unimplemented) GetVolumeStats(context.Context, *pb.VolumeStatsRequest) (*pb.VolumeStatsResponse, error) {
	return nil, notImplemented("GetVolumeStats")
}

func (unimplemented) ResizeVolume(context.Context, *pb.ResizeVolumeRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("ResizeVolume")
}

func (unimplemented) SetPolicy(context.Context, *pb.SetPolicyRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("SetPolicy")
}
