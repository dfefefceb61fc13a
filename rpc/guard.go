// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister-cc/cloister/internal/callers"
	"github.com/cloister-cc/cloister/rpc/pb"
)

// maxInFlight bounds the requests that are being served at a time. A container takes about three for as long as it runs.
const maxInFlight = 4096

// guard is what every request passes, whatever service and method it is for: ttrpc calls it as the server's only
// interceptor, and a method can get its request from nowhere else.
type guard struct {
	gate     Gate
	log      *slog.Logger
	inFlight atomic.Int32
}

// intercept is a ttrpc.UnaryServerInterceptor.
func (g *guard) intercept(
	ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method,
) (resp any, err error) {
	defer func() {
		if r := recover(); r != nil {
			g.log.Error("request handler panicked", "method", info.FullMethod, "panic", fmt.Sprint(r), "stack", callers.Names())
			resp, err = nil, status.Errorf(codes.Internal, "%s: internal error of the agent, see its log", info.FullMethod)
		}
	}()
	if g.inFlight.Add(1) > maxInFlight {
		g.inFlight.Add(-1)
		return nil, status.Errorf(codes.ResourceExhausted, "more than %d requests at a time", maxInFlight)
	}
	defer g.inFlight.Add(-1)

	var request proto.Message
	denied := false
	admit := func(obj any) error {
		m, ok := obj.(proto.Message)
		if !ok {
			return status.Errorf(codes.Internal, "%s: request type %T", info.FullMethod, obj)
		}
		if err := decode(unmarshal, m); err != nil {
			return err
		}
		if err := ask(ctx, g.gate, Request{Method: info.FullMethod, Message: m}); err != nil {
			denied = true
			return err
		}
		request = m
		return nil
	}
	resp, err = method(ctx, admit)
	switch {
	case denied:
		return g.deny(info.FullMethod, err)
	case request == nil && err == nil:
		return nil, status.Errorf(codes.Internal, "%s: served without a request", info.FullMethod)
	case err != nil:
		err = toStatus(request, err)
		g.log.Log(ctx, failureLevel(request, err), "request failed", "method", info.FullMethod, "error", err)
		return nil, err
	}
	return resp, nil
}

// deny answers a denied request. A denied read is answered with the end of the stream: an error would make the shim
// give up on a container that does run.
func (g *guard) deny(method string, err error) (any, error) {
	g.log.Warn("request blocked", "method", method, "error", err)
	if method == methodReadStdout || method == methodReadStderr {
		return &pb.ReadStreamResponse{}, nil
	}
	return nil, toStatus(nil, err)
}

// failureLevel keeps what the shim asks for again and again out of the log, such as statistics of containers that are gone.
func failureLevel(request proto.Message, err error) slog.Level {
	if _, ok := request.(*pb.StatsContainerRequest); ok {
		return slog.LevelDebug
	}
	switch status.Code(err) {
	case codes.Unimplemented, codes.Canceled:
		return slog.LevelDebug
	default:
		return slog.LevelWarn
	}
}

// decode bounds a request on the wire, then decodes it. What this schema does not know is dropped.
func decode(unmarshal ttrpc.Unmarshaler, m proto.Message) error {
	// ttrpc hands out the bytes only through a message; a message without fields keeps all of them as unknown.
	var carrier emptypb.Empty
	name := m.ProtoReflect().Descriptor().Name()
	if err := unmarshal(&carrier); err != nil {
		return status.Errorf(codes.InvalidArgument, "%s: malformed encoding: %s", name, clean(status.Convert(err).Message()))
	}
	raw := carrier.ProtoReflect().GetUnknown()
	if err := checkWire(raw, m.ProtoReflect().Descriptor()); err != nil {
		return status.Errorf(codes.InvalidArgument, "%s: %s", name, clean(err.Error()))
	}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, m); err != nil {
		return status.Errorf(codes.InvalidArgument, "%s: %s", name, clean(err.Error()))
	}
	return nil
}
