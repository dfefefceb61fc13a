// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"fmt"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/rpc/pb/types"
)

// call makes the request of that method; req and the answer are in protobuf's text form.
func (r *rig) call(ctx context.Context, t *testing.T, method, req string) (proto.Message, error) {
	t.Helper()
	service, in, out := messages(t, method)
	if err := prototext.Unmarshal([]byte(req), in); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return out, r.raw.Call(ctx, service, method, in, out)
}

func TestRequests(t *testing.T) {
	t.Parallel()
	const spec = `OCI { Process { Args: "sh" Args: "-c" User { } } Root { Path: "/x" } }`
	tests := []struct {
		method, request string
		wantCalls       []string
		wantAnswer      proto.Message
	}{
		{"Check", ``, nil, &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_SERVING}},
		{"Version", ``, nil, &pb.VersionCheckResponse{GrpcVersion: "0.0.1", AgentVersion: "1.2.3"}},
		{
			"CreateSandbox", `sandbox_id: "s1" hostname: "h" dns: "nameserver 1.2.3.4" sandbox_pidns: true`,
			[]string{`create sandbox s1 h ["nameserver 1.2.3.4"] 0 true ""`},
			nil,
		},
		{
			"CreateContainer",
			`container_id: "c1" exec_id: "c1" sandbox_pidns: true storages { driver: "image_guest_pull" driver_options: "o"
			 source: "r/i:1" fstype: "overlay" options: "x" mount_point: "/m" } ` + spec,
			[]string{`create c1 ["sh" "-c"] true [{Driver:image_guest_pull DriverOptions:[o] Source:r/i:1 FSType:overlay Options:[x] MountPoint:/m FSGroup:<nil>}]`},
			nil,
		},
		{"StartContainer", `container_id: "c1"`, []string{"start c1"}, nil},
		{"RemoveContainer", `container_id: "c1" timeout: 7`, []string{"remove c1 7s"}, nil},
		{"ExecProcess", `container_id: "c1" exec_id: "e1" process { Args: "ls" }`, []string{`exec c1 e1 ["ls"]`}, nil},
		{"SignalProcess", `container_id: "c1" signal: 9`, []string{`signal c1 "" 9`}, nil},
		{"SignalProcess", `container_id: "c1" exec_id: "c1" signal: 15`, []string{`signal c1 "" 15`}, nil},
		{"WaitProcess", `container_id: "c1" exec_id: "e1"`, []string{`wait c1 "e1"`}, &pb.WaitProcessResponse{Status: 42}},
		{"WaitProcess", `container_id: "c1" exec_id: "c1"`, []string{`wait c1 ""`}, &pb.WaitProcessResponse{Status: 42}},
		{
			"ReadStdout", `container_id: "c1" exec_id: "e1" len: 32768`,
			[]string{`stdout c1 "e1" 32768`},
			&pb.ReadStreamResponse{Data: []byte("data")},
		},
		{"ReadStderr", `container_id: "c1" len: 4294967295`, []string{`stderr c1 "" 1048576`}, &pb.ReadStreamResponse{Data: []byte("data")}},
		{
			"UpdateInterface", `interface { device: "eth0" name: "eth0" mtu: 1500 hwAddr: "02:00:00:00:00:01"
			 IPAddresses { address: "10.0.0.2" mask: "24" } }`,
			[]string{`interface {Device:eth0 Name:eth0 HWAddr:02:00:00:00:00:01 Addresses:[10.0.0.2/24] MTU:1500 RawFlags:0 DevicePath: Type:}`},
			&types.Interface{
				Device: "eth0", Name: "eth0", Mtu: 1500, HwAddr: "02:00:00:00:00:01",
				IPAddresses: []*types.IPAddress{{Address: "10.0.0.2", Mask: "24"}},
			},
		},
		{
			"UpdateRoutes", `routes { Routes { gateway: "10.0.0.1" device: "eth0" } }`,
			[]string{"routes 1"},
			&pb.Routes{Routes: []*types.Route{{Gateway: "10.0.0.1", Device: "eth0"}}},
		},
		{"RemoveStaleVirtiofsShareMounts", ``, []string{"stale"}, nil},
		{"PauseContainer", `container_id: "c1"`, []string{"pause c1"}, nil},
		{"ResumeContainer", `container_id: "c1"`, []string{"resume c1"}, nil},
		{"UpdateContainer", `container_id: "c1"`, []string{"update c1 nothing"}, nil},
		{
			"UpdateContainer", `container_id: "c1" resources { Devices { Access: "rwm" } Memory { Limit: 7 } }`,
			[]string{"update c1 memory 7, 1 devices"},
			nil,
		},
		{
			"StatsContainer", `container_id: "c1"`,
			[]string{"stats c1"},
			&pb.StatsContainerResponse{CgroupStats: &pb.CgroupStats{
				CpuStats: &pb.CpuStats{
					CpuUsage:       &pb.CpuUsage{TotalUsage: 3, UsageInUsermode: 2, UsageInKernelmode: 1},
					ThrottlingData: &pb.ThrottlingData{Periods: 6, ThrottledPeriods: 5, ThrottledTime: 4},
				},
				MemoryStats: &pb.MemoryStats{
					Cache: 5, UseHierarchy: true, Stats: map[string]uint64{"anon": 6},
					Usage: &pb.MemoryData{Usage: 1, MaxUsage: 2, Limit: 3, Failcnt: 4},
				},
				PidsStats:    &pb.PidsStats{Current: 1, Limit: 2},
				BlkioStats:   &pb.BlkioStats{IoServiceBytesRecursive: []*pb.BlkioStatsEntry{{Major: 8, Minor: 1, Op: "read", Value: 9}}},
				HugetlbStats: map[string]*pb.HugetlbStats{"2MB": {Usage: 7, Failcnt: 8}},
			}},
		},
		{"GetOOMEvent", ``, []string{"oom"}, &pb.OOMEvent{ContainerId: "c9"}},
		{"WriteStdin", `container_id: "c1" exec_id: "e1" data: "abc"`, []string{`stdin c1 "e1" "abc"`}, &pb.WriteStreamResponse{Len: 3}},
		{"WriteStdin", `container_id: "c1"`, []string{`stdin c1 "" ""`}, &pb.WriteStreamResponse{}},
		{"CloseStdin", `container_id: "c1" exec_id: "c1"`, []string{`close stdin c1 ""`}, nil},
		{"TtyWinResize", `container_id: "c1" exec_id: "e1" row: 24 column: 80`, []string{`resize c1 "e1" 24 80`}, nil},
		{
			"CopyFile", `path: "/p" file_size: 9 file_mode: 33188 dir_mode: 2147484136 uid: 1 gid: 2 offset: 3 data: "x"`,
			[]string{`copy {Path:/p Size:9 Mode:33188 DirMode:2147484136 UID:1 GID:2 Offset:3 Data:[120]}`},
			nil,
		},
		{"UpdateEphemeralMounts", `storages { driver: "ephemeral" }`, []string{"ephemeral 1"}, nil},
		{"GetDiagnosticData", `container_id: "c1" log_type: "termination_log"`, []string{"termination log c1"}, &pb.GetDiagnosticDataResponse{Data: "why"}},
		{"SetGuestDateTime", `Sec: 5 Usec: 6`, []string{"time 5 6"}, nil},
		{"ReseedRandomDev", `data: "abc"`, []string{`reseed "abc"`}, nil},
		{"GetMetrics", ``, []string{"metrics"}, &pb.Metrics{Metrics: "metric 1\n"}},
		{
			"GetGuestDetails", `mem_block_size: true`, nil,
			&pb.GuestDetailsResponse{AgentDetails: &pb.AgentDetails{
				Version: "1.2.3", StorageHandlers: []string{"image_guest_pull"}, SupportsSeccomp: true, ExtraFeatures: []string{"seccomp"},
			}, MemBlockSizeBytes: 1 << 27},
		},
		{"DestroySandbox", ``, []string{"destroy"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.method, func(t *testing.T) {
			t.Parallel()
			sandbox := &fakeSandbox{out: []byte("data")}
			answer, err := newRig(t, sandbox, AllowAll).call(t.Context(), t, tt.method, tt.request)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.wantCalls, sandbox.calls()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if tt.wantAnswer == nil {
				if n := proto.Size(answer); n != 0 {
					t.Errorf("answer has %d bytes, want none", n)
				}
			} else if diff := cmp.Diff(tt.wantAnswer, answer, protocmp.Transform()); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRefusedRequests(t *testing.T) {
	t.Parallel()
	const id = `container_id: "c1" `
	tests := []struct {
		method, request string
		want            codes.Code
		text            string
	}{
		{"CreateSandbox", `sandbox_id: "../x"`, codes.InvalidArgument, "sandbox id"},
		{"CreateSandbox", `sandbox_id: "s1" kernel_modules { name: "evil" }`, codes.InvalidArgument, "kernel modules"},
		{"CreateContainer", `container_id: "a/b" OCI { }`, codes.InvalidArgument, "Invalid container id"},
		{"CreateContainer", `container_id: "." OCI { }`, codes.InvalidArgument, "Invalid container id"},
		{"CreateContainer", id, codes.InvalidArgument, "OCI spec is missing"},
		{"CreateContainer", id + `OCI { Windows { } }`, codes.InvalidArgument, "Windows"},
		{"CreateContainer", id + `OCI { } devices { type: "blk" container_path: "/dev/x" }`, codes.InvalidArgument, "/dev/x"},
		{"CreateContainer", id + `OCI { } shared_mounts { name: "x" }`, codes.InvalidArgument, "shared mounts"},
		{"CreateContainer", id + `OCI { } string_user { uid: "x" }`, codes.InvalidArgument, "users by name"},
		{"CreateContainer", id + `OCI { } stdout_port: 7`, codes.InvalidArgument, "vsock ports"},
		{"CreateContainer", id + `OCI { } storages { source: "x" }`, codes.InvalidArgument, "driver is missing"},
		{"CreateContainer", id + `OCI { Process { OOMScoreAdj: 1001 } }`, codes.InvalidArgument, "oom_score_adj"},
		{"StartContainer", ``, codes.Internal, "Invalid container id"},
		{"ExecProcess", id + `exec_id: "e1"`, codes.InvalidArgument, "process to execute"},
		{"ExecProcess", id + `exec_id: "c1" process { Args: "x" }`, codes.Internal, "already exists"},
		{"ExecProcess", id + `exec_id: "" process { Args: "x" }`, codes.InvalidArgument, "exec id"},
		{"SignalProcess", id + `signal: 65`, codes.InvalidArgument, "signal 65"},
		{"SignalProcess", `signal: 9`, codes.Internal, "Invalid container id"},
		{"SignalProcess", `signal: 15`, codes.InvalidArgument, "Invalid container id"},
		{"WaitProcess", id + `exec_id: "/"`, codes.InvalidArgument, "exec id"},
		{"ReadStdout", id, codes.InvalidArgument, "0 bytes"},
		{"UpdateInterface", ``, codes.InvalidArgument, "empty update interface request"},
		{"UpdateRoutes", ``, codes.InvalidArgument, "empty update routes request"},
		{"GetIPTables", ``, codes.Unimplemented, "GetIPTables is not implemented"},
		{"PauseContainer", ``, codes.InvalidArgument, "Invalid container id"},
		{"StatsContainer", ``, codes.InvalidArgument, "Invalid container id"},
		{"UpdateContainer", ``, codes.InvalidArgument, "Invalid container id"},
		{"WriteStdin", ``, codes.Internal, "Invalid container id"},
		{"CloseStdin", ``, codes.InvalidArgument, "Invalid container id"},
		{"TtyWinResize", ``, codes.InvalidArgument, "Invalid container id"},
		{"GetDiagnosticData", id + `log_type: "dmesg"`, codes.InvalidArgument, `"dmesg"`},
		{"GetDiagnosticData", `log_type: "termination_log"`, codes.Internal, "Invalid container id"},
		{"SetGuestDateTime", `Sec: 1 Usec: 1000000`, codes.InvalidArgument, "no time"},
		{"SetGuestDateTime", `Sec: -1`, codes.InvalidArgument, "no time"},
		{"ReseedRandomDev", ``, codes.InvalidArgument, "0 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.request, func(t *testing.T) {
			t.Parallel()
			sandbox := &fakeSandbox{}
			_, err := newRig(t, sandbox, AllowAll).call(t.Context(), t, tt.method, tt.request)
			wantStatus(t, err, tt.want, tt.text)
			if calls := sandbox.calls(); len(calls) != 0 {
				t.Errorf("the sandbox was called: %q", calls)
			}
		})
	}
}

// TestErrorCodes checks the code of each error of the domain, for the requests where Kata's codes differ, and that texts
// that the shim looks for survive.
func TestErrorCodes(t *testing.T) {
	t.Parallel()
	const id = `container_id: "c1" `
	wrap := func(err error) error { return fmt.Errorf("operation: %w", err) }
	tests := []struct {
		err             error
		method, request string
		want            codes.Code
		text            string
	}{
		{wrap(agent.ErrInvalidContainerID), "StartContainer", id, codes.Internal, "Invalid container id"},
		{wrap(agent.ErrInvalidContainerID), "RemoveContainer", id, codes.Internal, "Invalid container id"},
		{wrap(agent.ErrInvalidContainerID), "ExecProcess", id + `exec_id: "e1" process { Args: "x" }`, codes.Internal, "Invalid container id"},
		{wrap(agent.ErrInvalidContainerID), "SignalProcess", id + `signal: 9`, codes.Internal, "Invalid container id"},
		{wrap(agent.ErrInvalidContainerID), "SignalProcess", id + `signal: 15`, codes.InvalidArgument, "Invalid container id"},
		{wrap(agent.ErrInvalidContainerID), "SignalProcess", id + `exec_id: "e1" signal: 9`, codes.InvalidArgument, "Invalid container id"},
		{wrap(agent.ErrInvalidContainerID), "WaitProcess", id, codes.InvalidArgument, "Invalid container id"},
		{wrap(agent.ErrInvalidContainerID), "ReadStdout", id + `len: 1`, codes.InvalidArgument, "Invalid container id"},
		{wrap(agent.ErrInvalidContainerID), "ReadStderr", id + `len: 1`, codes.InvalidArgument, "Invalid container id"},
		{wrap(agent.ErrInvalidContainerID), "WriteStdin", id, codes.Internal, "Invalid container id"},
		{wrap(agent.ErrInvalidContainerID), "CloseStdin", id, codes.InvalidArgument, "Invalid container id"},
		{wrap(agent.ErrProcessNotFound), "CloseStdin", id + `exec_id: "e1"`, codes.NotFound, "process not found"},
		{wrap(agent.ErrInvalidContainerID), "GetDiagnosticData", id + `log_type: "termination_log"`, codes.Internal, "Invalid container id"},
		{wrap(agent.ErrProcessNotFound), "WriteStdin", id + `exec_id: "e1"`, codes.Internal, "process not found"},
		{wrap(agent.ErrNoWriter), "WriteStdin", id, codes.Internal, "Cannot get writer"},
		{wrap(agent.ErrNoTerminal), "TtyWinResize", id, codes.Unavailable, "no tty"},
		{wrap(agent.ErrState), "PauseContainer", id, codes.Internal, "not allowed in this state"},
		{wrap(agent.ErrState), "ResumeContainer", id, codes.Internal, "not allowed in this state"},
		{wrap(agent.ErrState), "GetOOMEvent", "", codes.Internal, "not allowed in this state"},
		{wrap(agent.ErrAlreadyExists), "ExecProcess", id + `exec_id: "e1" process { Args: "x" }`, codes.Internal, "already exists"},
		{wrap(agent.ErrProcessNotFound), "WaitProcess", id, codes.NotFound, "process not found"},
		{wrap(agent.ErrAlreadyExists), "StartContainer", id, codes.AlreadyExists, "already exists"},
		{wrap(agent.ErrState), "StartContainer", id, codes.FailedPrecondition, "not allowed in this state"},
		{wrap(agent.ErrTainted), "StartContainer", id, codes.FailedPrecondition, "tainted"},
		{wrap(agent.ErrInvalidArgument), "StartContainer", id, codes.InvalidArgument, "operation: invalid argument"},
		{wrap(agent.ErrUnsupported), "StartContainer", id, codes.InvalidArgument, "unsupported"},
		{wrap(agent.ErrDenied), "StartContainer", id, codes.PermissionDenied, "operation: not allowed in this guest"},
		{wrap(syscall.ENOSPC), "StartContainer", id, codes.ResourceExhausted, "no space left on device"},
		{wrap(syscall.ESRCH), "SignalProcess", id, codes.NotFound, "ESRCH: No such process"},
		{wrap(context.DeadlineExceeded), "StartContainer", id, codes.DeadlineExceeded, "operation"},
		{
			fmt.Errorf("eth0: Link not found"), "UpdateInterface", `interface { name: "eth0" hwAddr: "02:00:00:00:00:01" }`,
			codes.Internal, "eth0: Link not found",
		},
		{fmt.Errorf("bad \xff utf-8"), "StartContainer", id, codes.Internal, "bad \uFFFD utf-8"},
		{fmt.Errorf("%0100000d", 1), "StartContainer", id, codes.Internal, "…"},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.want.String(), func(t *testing.T) {
			t.Parallel()
			sandbox := &fakeSandbox{on: func(context.Context, string) error { return tt.err }}
			_, err := newRig(t, sandbox, AllowAll).call(t.Context(), t, tt.method, tt.request)
			wantStatus(t, err, tt.want, tt.text)
			if len(err.Error()) > maxErrorText+100 {
				t.Errorf("error text has %d bytes", len(err.Error()))
			}
		})
	}
}

// okStatus is an error that claims success.
type okStatus struct{}

func (okStatus) Error() string              { return "fine" }
func (okStatus) GRPCStatus() *status.Status { return status.New(codes.OK, "") }

// TestErrorIsNeverOK: an error whose status says OK would reach the host as success.
func TestErrorIsNeverOK(t *testing.T) {
	t.Parallel()
	sandbox := &fakeSandbox{on: func(context.Context, string) error { return fmt.Errorf("wrapped: %w", okStatus{}) }}
	_, err := newRig(t, sandbox, AllowAll).call(t.Context(), t, "StartContainer", `container_id: "c1"`)
	wantStatus(t, err, codes.Internal, "wrapped: fine")
}
