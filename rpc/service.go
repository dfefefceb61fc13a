// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/agent/netdev"
	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/rpc/pb/types"
)

// Sandbox is what the server drives; agent.Sandbox is one.
type Sandbox interface {
	lifecycle
	containers
	running
	processes
	streams
	inputs
	files
	network
}

type lifecycle interface {
	Create(ctx context.Context, c agent.SandboxConfig) error
	Destroy(ctx context.Context) error
}

type containers interface {
	CreateContainer(ctx context.Context, c agent.ContainerConfig) error
	StartContainer(ctx context.Context, id string) error
	RemoveContainer(ctx context.Context, id string, timeout time.Duration) error
}

type running interface {
	PauseContainer(ctx context.Context, id string) error
	ResumeContainer(ctx context.Context, id string) error
	UpdateContainer(ctx context.Context, id string, resources *specs.LinuxResources) error
	StatsContainer(ctx context.Context, id string) (*cgroup.Stats, error)
}

type processes interface {
	Exec(ctx context.Context, containerID, execID string, p *specs.Process) error
	Signal(ctx context.Context, containerID, execID string, signal int) error
	Wait(ctx context.Context, containerID, execID string) (int, error)
}

type streams interface {
	ReadStdout(ctx context.Context, containerID, execID string, limit int) ([]byte, error)
	ReadStderr(ctx context.Context, containerID, execID string, limit int) ([]byte, error)
}

type inputs interface {
	WriteStdin(ctx context.Context, containerID, execID string, data []byte) error
	CloseStdin(ctx context.Context, containerID, execID string) error
	ResizeTerminal(containerID, execID string, rows, columns int) error
	NextOOM(ctx context.Context) (containerID string, err error)
}

type files interface {
	CopyFile(ctx context.Context, f agent.File) error
	DropStaleMounts(ctx context.Context)
	UpdateEphemeralMounts(ctx context.Context, storages []agent.Storage) error
	TerminationLog(ctx context.Context, containerID string) (string, error)
}

// Machine is the guest itself, as far as the API changes or describes it.
type Machine interface {
	// SetTime sets the clock.
	SetTime(sec, usec int64) error
	// Reseed mixes data into the kernel's random numbers.
	Reseed(data []byte) error
	// Details describes the guest.
	Details() agent.GuestDetails
	// Metrics are in Prometheus' text format.
	Metrics() (string, error)
}

type network interface {
	UpdateInterface(ctx context.Context, want netdev.Interface) error
	UpdateRoutes(ctx context.Context, want []netdev.Route) ([]netdev.Route, error)
}

// The reads that are answered with the end of the stream when they are denied.
const (
	methodReadStdout = "/grpc.AgentService/ReadStdout"
	methodReadStderr = "/grpc.AgentService/ReadStderr"
)

const (
	// maxRead bounds the bytes of one ReadStdout or ReadStderr; the shim asks for 32 KiB.
	maxRead = 1 << 20
	// maxSignal is Linux' SIGRTMAX.
	maxSignal = 64
)

// agentService serves grpc.AgentService. Its methods translate and nothing else; the guard stands before each.
type agentService struct {
	unimplemented
	sandbox Sandbox
	machine Machine
	version string
}

// CreateSandbox serves the RPC of that name.
func (s *agentService) CreateSandbox(ctx context.Context, r *pb.CreateSandboxRequest) (*emptypb.Empty, error) {
	c, err := sandboxConfig(r)
	if err != nil {
		return nil, err
	}
	return empty(s.sandbox.Create(ctx, c))
}

// DestroySandbox serves the RPC of that name.
func (s *agentService) DestroySandbox(ctx context.Context, _ *pb.DestroySandboxRequest) (*emptypb.Empty, error) {
	return empty(s.sandbox.Destroy(ctx))
}

// UpdateInterface serves the RPC of that name. It answers with the interface of the request.
func (s *agentService) UpdateInterface(ctx context.Context, r *pb.UpdateInterfaceRequest) (*types.Interface, error) {
	if r.GetInterface() == nil {
		return nil, invalid("empty update interface request")
	}
	want, err := interfaceFromPB(r.GetInterface())
	if err != nil {
		return nil, err
	}
	if err := s.sandbox.UpdateInterface(ctx, want); err != nil {
		return nil, err
	}
	return r.GetInterface(), nil
}

// UpdateRoutes serves the RPC of that name. It answers with the routes of the main table.
func (s *agentService) UpdateRoutes(ctx context.Context, r *pb.UpdateRoutesRequest) (*pb.Routes, error) {
	if r.GetRoutes() == nil {
		return nil, invalid("empty update routes request")
	}
	want, err := routesFromPB(r.GetRoutes().GetRoutes())
	if err != nil {
		return nil, err
	}
	got, err := s.sandbox.UpdateRoutes(ctx, want)
	if err != nil {
		return nil, err
	}
	return &pb.Routes{Routes: routesToPB(got)}, nil
}

// CreateContainer serves the RPC of that name.
func (s *agentService) CreateContainer(ctx context.Context, r *pb.CreateContainerRequest) (*emptypb.Empty, error) {
	c, err := containerConfig(r)
	if err != nil {
		return nil, err
	}
	return empty(s.sandbox.CreateContainer(ctx, c))
}

// StartContainer serves the RPC of that name.
func (s *agentService) StartContainer(ctx context.Context, r *pb.StartContainerRequest) (*emptypb.Empty, error) {
	if err := checkContainerID(r.GetContainerId()); err != nil {
		return nil, err
	}
	return empty(s.sandbox.StartContainer(ctx, r.GetContainerId()))
}

// RemoveContainer serves the RPC of that name; the timeout is in seconds.
func (s *agentService) RemoveContainer(ctx context.Context, r *pb.RemoveContainerRequest) (*emptypb.Empty, error) {
	if err := checkContainerID(r.GetContainerId()); err != nil {
		return nil, err
	}
	return empty(s.sandbox.RemoveContainer(ctx, r.GetContainerId(), time.Duration(r.GetTimeout())*time.Second))
}

// ExecProcess serves the RPC of that name.
func (s *agentService) ExecProcess(ctx context.Context, r *pb.ExecProcessRequest) (*emptypb.Empty, error) {
	p, err := execProcess(r)
	if err != nil {
		return nil, err
	}
	return empty(s.sandbox.Exec(ctx, r.GetContainerId(), r.GetExecId(), p))
}

// SignalProcess serves the RPC of that name.
func (s *agentService) SignalProcess(ctx context.Context, r *pb.SignalProcessRequest) (*emptypb.Empty, error) {
	execID, err := processID(r)
	if err != nil {
		return nil, err
	}
	if r.GetSignal() > maxSignal {
		return nil, invalid("signal %d is above %d", r.GetSignal(), maxSignal)
	}
	return empty(s.sandbox.Signal(ctx, r.GetContainerId(), execID, int(r.GetSignal())))
}

// WaitProcess serves the RPC of that name.
func (s *agentService) WaitProcess(ctx context.Context, r *pb.WaitProcessRequest) (*pb.WaitProcessResponse, error) {
	execID, err := processID(r)
	if err != nil {
		return nil, err
	}
	code, err := s.sandbox.Wait(ctx, r.GetContainerId(), execID)
	if err != nil {
		return nil, err
	}
	return &pb.WaitProcessResponse{Status: int32(code)}, nil
}

// ReadStdout serves the RPC of that name; no data is the end of the stream.
func (s *agentService) ReadStdout(ctx context.Context, r *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	return read(ctx, r, s.sandbox.ReadStdout)
}

// ReadStderr serves the RPC of that name; no data is the end of the stream.
func (s *agentService) ReadStderr(ctx context.Context, r *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	return read(ctx, r, s.sandbox.ReadStderr)
}

func read(
	ctx context.Context, r *pb.ReadStreamRequest,
	from func(ctx context.Context, containerID, execID string, limit int) ([]byte, error),
) (*pb.ReadStreamResponse, error) {
	execID, err := processID(r)
	if err != nil {
		return nil, err
	}
	if r.GetLen() == 0 {
		return nil, invalid("read of 0 bytes: its answer would be taken for the end of the stream")
	}
	data, err := from(ctx, r.GetContainerId(), execID, int(min(r.GetLen(), maxRead)))
	if err != nil {
		return nil, err
	}
	return &pb.ReadStreamResponse{Data: data}, nil
}

// healthService serves grpc.Health.
type healthService struct{ version string }

// grpcVersion is what Kata's own agent tells as the version of the API.
const grpcVersion = "0.0.1"

// Check serves the RPC of that name. An agent that answers is serving.
func (h *healthService) Check(context.Context, *pb.CheckRequest) (*pb.HealthCheckResponse, error) {
	return &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_SERVING}, nil
}

// Version serves the RPC of that name.
func (h *healthService) Version(context.Context, *pb.CheckRequest) (*pb.VersionCheckResponse, error) {
	return &pb.VersionCheckResponse{GrpcVersion: grpcVersion, AgentVersion: h.version}, nil
}

func empty(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// invalid returns an error that is agent.ErrInvalidArgument but reads as given.
func invalid(format string, args ...any) error {
	return &requestError{fmt.Sprintf(format, args...), agent.ErrInvalidArgument}
}

// unsupported returns an error that is agent.ErrUnsupported but reads as given.
func unsupported(format string, args ...any) error {
	return &requestError{fmt.Sprintf(format, args...), agent.ErrUnsupported}
}

type requestError struct {
	text string
	is   error
}

// Error returns the text.
func (e *requestError) Error() string { return e.text }

// Is tells which error of the domain this is.
func (e *requestError) Is(target error) bool { return errors.Is(e.is, target) }
