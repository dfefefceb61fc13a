// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Request is what a Gate decides on.
type Request struct {
	// Method is the full name, for instance "/grpc.AgentService/CreateContainer".
	Method string
	// Message is the decoded request. A Gate must not change it: the handler gets the same one.
	Message proto.Message
}

// Gate decides whether a request of the host may be served: nil lets it pass, every error denies it. An error that
// carries a status code keeps it, any other becomes PERMISSION_DENIED. A nil Gate denies everything.
type Gate func(ctx context.Context, r Request) error

// The methods that DenyAll lets pass.
const (
	methodCheck   = "/grpc.Health/Check"
	methodVersion = "/grpc.Health/Version"
)

// DenyAll denies every request but Health.Check and Health.Version. Those two reveal nothing but that an agent of some
// version runs, and the shim takes the guest down without them.
func DenyAll(_ context.Context, r Request) error {
	if r.Method == methodCheck || r.Method == methodVersion {
		return nil
	}
	return blocked(r.Message)
}

// AllowAll lets every request pass. It gives the host all that the agent can do inside the guest: for tests and demonstrations.
func AllowAll(context.Context, Request) error { return nil }

// blocked is the answer to a denied request, in the words that the shim's users know.
func blocked(m proto.Message) error {
	return status.Errorf(codes.PermissionDenied, "%s is blocked by policy", m.ProtoReflect().Descriptor().Name())
}

// ask puts a request to the gate. Whatever is not a clear yes is a no.
func ask(ctx context.Context, gate Gate, r Request) error {
	if gate == nil {
		return blocked(r.Message)
	}
	err := gate(ctx, r)
	if err == nil {
		return nil
	}
	if st, ok := status.FromError(err); ok && st.Code() != codes.OK {
		return st.Err()
	}
	return blocked(r.Message)
}
