// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// services are all that the server offers.
func services() []protoreflect.ServiceDescriptor {
	return []protoreflect.ServiceDescriptor{
		pb.File_rpc_pb_agent_proto.Services().ByName("AgentService"),
		pb.File_rpc_pb_health_proto.Services().ByName("Health"),
	}
}

// messages returns the full name of a method's service and its two messages.
func messages(t *testing.T, method string) (service string, in, out proto.Message) {
	t.Helper()
	for _, s := range services() {
		if m := s.Methods().ByName(protoreflect.Name(method)); m != nil {
			return string(s.FullName()), newMessage(t, m.Input()), newMessage(t, m.Output())
		}
	}
	t.Fatalf("no method %s", method)
	return "", nil, nil
}

func newMessage(t testing.TB, d protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return mt.New().Interface()
}

func eachMethod(t *testing.T, f func(service, method string, in, out proto.Message)) {
	t.Helper()
	n := 0
	for _, s := range services() {
		for i := range s.Methods().Len() {
			m := s.Methods().Get(i)
			n++
			f(string(s.FullName()), string(m.Name()), newMessage(t, m.Input()), newMessage(t, m.Output()))
		}
	}
	if n != 44 {
		t.Errorf("%d methods, want 44", n)
	}
}

func wantStatus(t *testing.T, err error, want codes.Code, text string) {
	t.Helper()
	if got := status.Code(err); got != want || (err != nil && !strings.Contains(err.Error(), text)) {
		t.Errorf("got %v (%v), want code %v and text %q", got, err, want, text)
	}
}

func isRead(method string) bool { return method == "ReadStdout" || method == "ReadStderr" }

// TestDeniedMethods: threat: a method that is registered past the gate. Seen: for every method of the descriptors, a
// gate that denies is asked, the answer is a denial and the sandbox is not touched.
func TestDeniedMethods(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var asked []string
	gates := map[string]Gate{
		"nil": nil,
		"error": func(_ context.Context, r Request) error {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, r.Method)
			return errors.New("no")
		},
		"claims OK": func(context.Context, Request) error { return okStatus{} },
		"deny all":  DenyAll,
	}
	var want []string
	eachMethod(t, func(service, method string, _, _ proto.Message) { want = append(want, "/"+service+"/"+method) })
	for name, gate := range gates {
		t.Run(name, func(t *testing.T) {
			sandbox := &fakeSandbox{out: []byte("secret")}
			r := newRig(t, sandbox, gate)
			eachMethod(t, func(service, method string, in, out proto.Message) {
				err := r.raw.Call(t.Context(), service, method, in, out)
				switch {
				case service == "grpc.Health" && name == "deny all":
					if err != nil {
						t.Errorf("%s: %v", method, err)
					}
				case isRead(method):
					if err != nil || proto.Size(out) != 0 {
						t.Errorf("%s: %v, %v; want an empty answer", method, out, err)
					}
				default:
					wantStatus(t, err, codes.PermissionDenied, string(in.ProtoReflect().Descriptor().Name())+" is blocked by policy")
				}
			})
			if calls := sandbox.calls(); len(calls) != 0 {
				t.Errorf("the sandbox was called: %q", calls)
			}
		})
	}
	if !slices.Equal(asked, want) {
		t.Errorf("the gate was asked for\n%q, want\n%q", asked, want)
	}
}

// TestAllowedMethods: every method is either served or says by name that it is not there.
func TestAllowedMethods(t *testing.T) {
	t.Parallel()
	served := []string{
		"CreateContainer", "StartContainer", "RemoveContainer", "ExecProcess", "SignalProcess", "WaitProcess", "UpdateContainer",
		"UpdateEphemeralMounts", "StatsContainer", "PauseContainer", "ResumeContainer", "RemoveStaleVirtiofsShareMounts",
		"GetDiagnosticData", "WriteStdin", "ReadStdout", "ReadStderr", "CloseStdin", "TtyWinResize", "UpdateInterface", "UpdateRoutes",
		"GetMetrics", "CreateSandbox", "DestroySandbox", "ReseedRandomDev", "GetGuestDetails", "SetGuestDateTime", "CopyFile",
		"GetOOMEvent", "Check", "Version",
	}
	r := newRig(t, &fakeSandbox{}, AllowAll)
	var got, missing []string
	eachMethod(t, func(service, method string, in, out proto.Message) {
		err := r.raw.Call(t.Context(), service, method, in, out)
		if status.Code(err) != codes.Unimplemented {
			got = append(got, method)
			return
		}
		wantStatus(t, err, codes.Unimplemented, method+" is not implemented")
		missing = append(missing, method)
	})
	doc, err := os.ReadFile("../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	if line := fmt.Sprintf("| the other %d | `UNIMPLEMENTED`: %s |", len(missing), strings.Join(missing, ", ")); !strings.Contains(string(doc), line) {
		t.Errorf("docs/agent.md does not say: %s", line)
	}
	if !slices.Equal(got, served) {
		t.Errorf("served %q, want %q", got, served)
	}
	err = r.raw.Call(t.Context(), "grpc.AgentService", "NoSuchMethod", &pb.CheckRequest{}, &pb.CheckRequest{})
	wantStatus(t, err, codes.Unimplemented, "NoSuchMethod")
}

func TestGateSeesDecodedRequest(t *testing.T) {
	t.Parallel()
	var got Request
	r := newRig(t, &fakeSandbox{}, func(_ context.Context, req Request) error {
		got = req
		return status.Error(codes.Internal, "StartContainerRequest: internal error")
	})
	_, err := r.call(t.Context(), t, "StartContainer", `container_id: "abc"`)
	wantStatus(t, err, codes.Internal, "StartContainerRequest: internal error")
	m, ok := got.Message.(*pb.StartContainerRequest)
	if got.Method != "/grpc.AgentService/StartContainer" || !ok || m.GetContainerId() != "abc" {
		t.Errorf("the gate got %s %v", got.Method, got.Message)
	}
}

// TestPanics: threat: a request that makes a handler or the policy panic ends PID 1. Seen: INTERNAL without the panic's
// text, the stack in the log, and the connection goes on; a panic of the gate is a denial.
func TestPanics(t *testing.T) {
	t.Parallel()
	boom := func() { panic("boom 7193") }
	for name, tt := range map[string]struct {
		gate Gate
		on   func(context.Context, string) error
		want int
	}{
		"handler": {gate: AllowAll, on: func(context.Context, string) error { boom(); return nil }, want: 1},
		"gate": {gate: func(_ context.Context, r Request) error {
			if r.Method != methodCheck {
				boom()
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sandbox := &fakeSandbox{on: tt.on}
			r := newRig(t, sandbox, tt.gate)
			_, err := r.call(t.Context(), t, "StartContainer", `container_id: "c1"`)
			wantStatus(t, err, codes.Internal, "internal error")
			if strings.Contains(err.Error(), "7193") {
				t.Errorf("the host was told: %v", err)
			}
			if got := len(sandbox.calls()); got != tt.want {
				t.Errorf("%d calls of the sandbox, want %d", got, tt.want)
			}
			if !strings.Contains(r.log.String(), "boom 7193") || !strings.Contains(r.log.String(), "rpc.TestPanics") {
				t.Errorf("panic or stack missing in log: %s", r.log)
			}
			if _, err := r.call(t.Context(), t, "Check", ``); err != nil {
				t.Errorf("after the panic: %v", err)
			}
		})
	}
}
