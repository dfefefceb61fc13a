// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// PauseContainer serves the RPC of that name.
func (s *agentService) PauseContainer(ctx context.Context, r *pb.PauseContainerRequest) (*emptypb.Empty, error) {
	if err := checkContainerID(r.GetContainerId()); err != nil {
		return nil, err
	}
	return empty(s.sandbox.PauseContainer(ctx, r.GetContainerId()))
}

// ResumeContainer serves the RPC of that name.
func (s *agentService) ResumeContainer(ctx context.Context, r *pb.ResumeContainerRequest) (*emptypb.Empty, error) {
	if err := checkContainerID(r.GetContainerId()); err != nil {
		return nil, err
	}
	return empty(s.sandbox.ResumeContainer(ctx, r.GetContainerId()))
}

// UpdateContainer serves the RPC of that name. A request without resources changes nothing.
func (s *agentService) UpdateContainer(ctx context.Context, r *pb.UpdateContainerRequest) (*emptypb.Empty, error) {
	if err := checkContainerID(r.GetContainerId()); err != nil {
		return nil, err
	}
	resources, err := resourcesFromPB(r.GetResources())
	if err != nil {
		return nil, err
	}
	return empty(s.sandbox.UpdateContainer(ctx, r.GetContainerId(), resources))
}

// StatsContainer serves the RPC of that name. What the guest cannot tell is not set.
func (s *agentService) StatsContainer(ctx context.Context, r *pb.StatsContainerRequest) (*pb.StatsContainerResponse, error) {
	if err := checkContainerID(r.GetContainerId()); err != nil {
		return nil, err
	}
	stats, err := s.sandbox.StatsContainer(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &pb.StatsContainerResponse{CgroupStats: statsToPB(stats)}, nil
}

// GetOOMEvent serves the RPC of that name; it blocks until there is one.
func (s *agentService) GetOOMEvent(ctx context.Context, _ *pb.GetOOMEventRequest) (*pb.OOMEvent, error) {
	id, err := s.sandbox.NextOOM(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.OOMEvent{ContainerId: id}, nil
}

// WriteStdin serves the RPC of that name. It takes all of the data; no data end the input.
func (s *agentService) WriteStdin(ctx context.Context, r *pb.WriteStreamRequest) (*pb.WriteStreamResponse, error) {
	execID, err := processID(r)
	if err != nil {
		return nil, err
	}
	if err := s.sandbox.WriteStdin(ctx, r.GetContainerId(), execID, r.GetData()); err != nil {
		return nil, err
	}
	return &pb.WriteStreamResponse{Len: uint32(len(r.GetData()))}, nil
}

// CloseStdin serves the RPC of that name.
func (s *agentService) CloseStdin(ctx context.Context, r *pb.CloseStdinRequest) (*emptypb.Empty, error) {
	execID, err := processID(r)
	if err != nil {
		return nil, err
	}
	return empty(s.sandbox.CloseStdin(ctx, r.GetContainerId(), execID))
}

// TtyWinResize serves the RPC of that name. A size of 0 by 0 is taken as it is.
func (s *agentService) TtyWinResize(_ context.Context, r *pb.TtyWinResizeRequest) (*emptypb.Empty, error) {
	execID, err := processID(r)
	if err != nil {
		return nil, err
	}
	return empty(s.sandbox.ResizeTerminal(r.GetContainerId(), execID, int(r.GetRow()), int(r.GetColumn())))
}
