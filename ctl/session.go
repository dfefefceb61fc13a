// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"context"
	"fmt"
	"time"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// Step tells of one finished request or phase.
type Step struct {
	// Name is the method's name, for instance "CreateContainer", with what it was for in parentheses where a run has
	// more than one.
	Name string
	// Took is how long it took.
	Took time.Duration
	// Err is nil where it succeeded.
	Err error
}

// Agent is a connected agent; client.Client is one.
type Agent interface {
	Agent() pb.AgentServiceService
	Health() pb.HealthService
}

// Session drives one agent. Its methods may be called concurrently if OnStep may.
type Session struct {
	agent  pb.AgentServiceService
	health pb.HealthService
	// OnStep is called after each request; nil is fine.
	OnStep func(Step)
}

// NewSession returns a session with the agent.
func NewSession(a Agent) *Session { return &Session{agent: a.Agent(), health: a.Health()} }

// step runs f as the step of that name.
func (s *Session) step(name string, f func() error) error {
	start := time.Now()
	err := f()
	if s.OnStep != nil {
		s.OnStep(Step{Name: name, Took: time.Since(start), Err: err})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// ask makes one request a step.
func ask[Req, Resp any](ctx context.Context, s *Session, name string, f func(context.Context, Req) (Resp, error), r Req) (Resp, error) {
	var resp Resp
	err := s.step(name, func() error {
		var err error
		resp, err = f(ctx, r)
		return err
	})
	return resp, err
}

// Check asks whether the agent serves.
func (s *Session) Check(ctx context.Context) (*pb.HealthCheckResponse, error) {
	return ask(ctx, s, "Check", s.health.Check, &pb.CheckRequest{})
}

// Version asks for the version of the agent and its API.
func (s *Session) Version(ctx context.Context) (*pb.VersionCheckResponse, error) {
	return ask(ctx, s, "Version", s.health.Version, &pb.CheckRequest{})
}

// Details asks what the agent offers.
func (s *Session) Details(ctx context.Context) (*pb.GuestDetailsResponse, error) {
	return ask(ctx, s, "GetGuestDetails", s.agent.GetGuestDetails, &pb.GuestDetailsRequest{MemBlockSize: true, MemHotplugProbe: true})
}

// Sandbox is a sandbox to set up.
type Sandbox struct {
	ID string
	// Hostname is that of its containers; empty leaves them the guest's.
	Hostname string
	// DNS are lines of resolv.conf.
	DNS []string
	// SharePID puts all containers into the PID namespace of the first one.
	SharePID bool
}

// SetUpSandbox sets the sandbox up.
func (s *Session) SetUpSandbox(ctx context.Context, c Sandbox) error {
	_, err := ask(ctx, s, "CreateSandbox", s.agent.CreateSandbox,
		&pb.CreateSandboxRequest{SandboxId: c.ID, Hostname: c.Hostname, Dns: c.DNS, SandboxPidns: c.SharePID})
	return err
}

// CreateSandbox sets a sandbox up whose containers have PID namespaces of their own. dns are lines of resolv.conf.
func (s *Session) CreateSandbox(ctx context.Context, id, hostname string, dns []string) error {
	return s.SetUpSandbox(ctx, Sandbox{ID: id, Hostname: hostname, DNS: dns})
}

// DestroySandbox destroys all containers; the guest then powers off.
func (s *Session) DestroySandbox(ctx context.Context) error {
	_, err := ask(ctx, s, "DestroySandbox", s.agent.DestroySandbox, &pb.DestroySandboxRequest{})
	return err
}

// CreateContainer pulls the image, unless the guest has it, and creates the container.
func (s *Session) CreateContainer(ctx context.Context, c Container) error {
	request, err := c.Request()
	if err != nil {
		return err
	}
	_, err = ask(ctx, s, "CreateContainer("+c.ID+")", s.agent.CreateContainer, request)
	return err
}

// StartContainer lets a created container run.
func (s *Session) StartContainer(ctx context.Context, id string) error {
	_, err := ask(ctx, s, "StartContainer("+id+")", s.agent.StartContainer, &pb.StartContainerRequest{ContainerId: id})
	return err
}

// Exec starts a further process in a container.
func (s *Session) Exec(ctx context.Context, containerID, execID string, p Process) error {
	_, err := ask(ctx, s, "ExecProcess("+execID+")", s.agent.ExecProcess,
		&pb.ExecProcessRequest{ContainerId: containerID, ExecId: execID, Process: p.pb(nil)})
	return err
}

// Signal sends a signal; with an empty execID to the container, SIGKILL then to all of it.
func (s *Session) Signal(ctx context.Context, containerID, execID string, signal uint32) error {
	_, err := ask(ctx, s, fmt.Sprintf("SignalProcess(%s, %d)", nameOf(containerID, execID), signal), s.agent.SignalProcess,
		&pb.SignalProcessRequest{ContainerId: containerID, ExecId: execID, Signal: signal})
	return err
}

// Wait blocks until a process has exited and returns its status, 128 and more for a signal.
func (s *Session) Wait(ctx context.Context, containerID, execID string) (int, error) {
	r, err := ask(ctx, s, "WaitProcess("+nameOf(containerID, execID)+")", s.agent.WaitProcess,
		&pb.WaitProcessRequest{ContainerId: containerID, ExecId: execID})
	return int(r.GetStatus()), err
}

// RemoveContainer kills what runs of a container and removes it, in the two requests that the shim makes.
func (s *Session) RemoveContainer(ctx context.Context, id string) error {
	if _, err := ask(ctx, s, "RemoveContainer("+id+")", s.agent.RemoveContainer, &pb.RemoveContainerRequest{ContainerId: id}); err != nil {
		return err
	}
	_, err := ask(ctx, s, "RemoveStaleVirtiofsShareMounts", s.agent.RemoveStaleVirtiofsShareMounts, &pb.RemoveStaleVirtiofsShareMountsRequest{})
	return err
}

func nameOf(containerID, execID string) string {
	if execID == "" {
		return containerID
	}
	return execID
}
