// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"context"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// Limits are limits of a container to change. 0 leaves one as it is, and -1 removes it, where that is possible.
type Limits struct {
	// Memory is in bytes.
	Memory int64
	// CPUQuota is how much CPU time the container has in each CPUPeriod; both are in microseconds.
	CPUQuota  int64
	CPUPeriod uint64
	// CPUShares is a weight against other containers; 1024 is usual.
	CPUShares uint64
	// Pids is the number of processes and threads.
	Pids int64
}

func (l Limits) pb() *pb.LinuxResources {
	r := &pb.LinuxResources{}
	if l.Memory != 0 {
		r.Memory = &pb.LinuxMemory{Limit: l.Memory}
	}
	if l.CPUQuota != 0 || l.CPUPeriod != 0 || l.CPUShares != 0 {
		r.CPU = &pb.LinuxCPU{Quota: l.CPUQuota, Period: l.CPUPeriod, Shares: l.CPUShares}
	}
	if l.Pids != 0 {
		r.Pids = &pb.LinuxPids{Limit: l.Pids}
	}
	return r
}

// PauseContainer stops every process of a container until ResumeContainer.
func (s *Session) PauseContainer(ctx context.Context, id string) error {
	_, err := ask(ctx, s, "PauseContainer("+id+")", s.agent.PauseContainer, &pb.PauseContainerRequest{ContainerId: id})
	return err
}

// ResumeContainer lets the processes of a paused container go on.
func (s *Session) ResumeContainer(ctx context.Context, id string) error {
	_, err := ask(ctx, s, "ResumeContainer("+id+")", s.agent.ResumeContainer, &pb.ResumeContainerRequest{ContainerId: id})
	return err
}

// UpdateContainer changes limits of a container.
func (s *Session) UpdateContainer(ctx context.Context, id string, l Limits) error {
	_, err := ask(ctx, s, "UpdateContainer("+id+")", s.agent.UpdateContainer, &pb.UpdateContainerRequest{ContainerId: id, Resources: l.pb()})
	return err
}

// Stats asks what a container uses. What the guest cannot tell is nil.
func (s *Session) Stats(ctx context.Context, id string) (*pb.StatsContainerResponse, error) {
	return ask(ctx, s, "StatsContainer("+id+")", s.agent.StatsContainer, &pb.StatsContainerRequest{ContainerId: id})
}

// NextOOM blocks until the kernel has killed a process of a container that used too much memory. Each event goes to one
// caller; the shim is another.
func (s *Session) NextOOM(ctx context.Context) (*pb.OOMEvent, error) {
	return ask(ctx, s, "GetOOMEvent", s.agent.GetOOMEvent, &pb.GetOOMEventRequest{})
}

// Metrics asks for the guest's metrics, in Prometheus' text format.
func (s *Session) Metrics(ctx context.Context) (*pb.Metrics, error) {
	return ask(ctx, s, "GetMetrics", s.agent.GetMetrics, &pb.GetMetricsRequest{})
}

// TerminationLog asks for what a container has written to its termination log. That is the file which is mounted where
// its annotation TerminationPath says.
func (s *Session) TerminationLog(ctx context.Context, id string) (*pb.GetDiagnosticDataResponse, error) {
	return ask(ctx, s, "GetDiagnosticData("+id+")", s.agent.GetDiagnosticData,
		&pb.GetDiagnosticDataRequest{LogType: "termination_log", ContainerId: id})
}

// TerminationPath is the annotation of a container by which the kubelet names its termination log.
const TerminationPath = "io.kubernetes.container.terminationMessagePath"
