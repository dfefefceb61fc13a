// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/rpc/pb"
)

// maxErrorText bounds the text of an error that goes to the host, in bytes.
const maxErrorText = 4096

// statusTable says which code an error of the domain gets; the first match counts, anything else is INTERNAL. The text
// of an error always survives: the shim looks for "Link not found" and "ESRCH: No such process" in it.
//
// ErrUnsupported is INVALID_ARGUMENT, not UNIMPLEMENTED: callers take the latter for an old agent that lacks a method
// and go on without it, which must not happen with a request that was refused because of what it asks for.
func statusTable() []errorCode {
	return []errorCode{
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{agent.ErrProcessNotFound, codes.NotFound},
		{agent.ErrNoTerminal, codes.Unavailable},
		{agent.ErrAlreadyExists, codes.AlreadyExists},
		{agent.ErrInvalidArgument, codes.InvalidArgument},
		{agent.ErrDenied, codes.PermissionDenied},
		{agent.ErrUnsupported, codes.InvalidArgument},
		{agent.ErrTainted, codes.FailedPrecondition},
		{agent.ErrState, codes.FailedPrecondition},
		{syscall.ESRCH, codes.NotFound},
		{syscall.ENOSPC, codes.ResourceExhausted},
	}
}

type errorCode struct {
	err  error
	code codes.Code
}

// toStatus turns the error of a handler into one that carries a status code. request may be nil.
func toStatus(request proto.Message, err error) error {
	var coded interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &coded):
		if c := coded.GRPCStatus().Code(); c != codes.OK {
			return status.Error(c, clean(status.Convert(err).Message()))
		}
	case errors.Is(err, agent.ErrInvalidContainerID):
		return status.Error(unknownContainer(request), clean(err.Error()))
	}
	text := err.Error()
	if errors.Is(err, syscall.ESRCH) && !strings.Contains(text, textESRCH) {
		text += ": " + textESRCH
	}
	for _, e := range statusTable() {
		if errors.Is(err, e.err) && !internal(request, e.err) {
			return status.Error(e.code, clean(text))
		}
	}
	return status.Error(codes.Internal, clean(text))
}

// textESRCH is what the shim looks for to ignore that a process has already gone.
const textESRCH = "ESRCH: No such process"

// unknownContainer is the code for a container that does not exist, which depends on the request: section "cross-cutting
// rules" of what Kata's own agent does (kata-containers 4.1.0, src/agent/src/rpc.rs).
func unknownContainer(request proto.Message) codes.Code {
	switch r := request.(type) {
	case *pb.StartContainerRequest, *pb.RemoveContainerRequest, *pb.ExecProcessRequest, *pb.GetDiagnosticDataRequest, *pb.WriteStreamRequest:
		return codes.Internal
	case *pb.SignalProcessRequest:
		if r.GetExecId() == "" && syscall.Signal(r.GetSignal()) == syscall.SIGKILL {
			return codes.Internal
		}
	}
	return codes.InvalidArgument
}

// internal tells whether an error of the domain is INTERNAL in the answer to a request, as Kata's own agent has it, though
// there is a code that says more.
func internal(request proto.Message, err error) bool {
	switch request.(type) {
	case *pb.ExecProcessRequest:
		return errors.Is(err, agent.ErrAlreadyExists)
	case *pb.WriteStreamRequest:
		return errors.Is(err, agent.ErrProcessNotFound)
	case *pb.PauseContainerRequest, *pb.ResumeContainerRequest, *pb.GetOOMEventRequest:
		return errors.Is(err, agent.ErrState)
	}
	return false
}

// clean makes text fit for a status message: valid UTF-8 of bounded length.
func clean(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= maxErrorText {
		return text
	}
	cut := maxErrorText
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + " …"
}
