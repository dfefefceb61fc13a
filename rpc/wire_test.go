// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// rawMessage is a message of those bytes, whatever they are.
func rawMessage(raw []byte) proto.Message {
	m := &emptypb.Empty{}
	m.ProtoReflect().SetUnknown(raw)
	return m
}

func encode(tb testing.TB, m proto.Message) []byte {
	tb.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// TestHostileEncodings sends bytes that no honest shim sends. Each must be refused by name before the sandbox is called.
func TestHostileEncodings(t *testing.T) {
	t.Parallel()
	field := func(n protowire.Number, value string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, n, protowire.BytesType), value)
	}
	process := func(p *pb.Process) []byte {
		return encode(t, &pb.CreateContainerRequest{ContainerId: "c1", OCI: &pb.Spec{Process: p}})
	}
	tests := map[string]struct {
		raw  []byte
		text string
	}{
		"truncated":         {[]byte{0x0a, 0x05, 'x'}, "malformed encoding"},
		"field number 0":    {[]byte{0x02, 0x00}, "malformed encoding"},
		"nested truncated":  {field(6, "\x0a\xff"), "malformed encoding"},
		"singular twice":    {append(field(1, "c1"), field(1, "c2")...), "container_id is given more than once"},
		"message twice":     {append(field(6, ""), field(6, "")...), "OCI is given more than once"},
		"NUL":               {field(1, "c1\x00"), "container_id contains a NUL byte"},
		"nested NUL":        {process(&pb.Process{Args: []string{"a", "b\x00"}}), "Args contains a NUL byte"},
		"no UTF-8":          {field(1, "c\xff"), "invalid UTF-8"},
		"storages":          {bytes.Repeat(field(5, ""), 257), "storages has more than 256 items"},
		"env":               {process(&pb.Process{Env: make([]string, maxItems+1)}), "Env has more than"},
		"long argument":     {process(&pb.Process{Args: []string{strings.Repeat("a", maxString+1)}}), "Args is longer than"},
		"packed groups":     {process(&pb.Process{User: &pb.User{AdditionalGids: make([]uint32, maxItems+1)}}), "AdditionalGids has more than"},
		"many small fields": {bytes.Repeat(field(99, ""), maxFields+1), "more than 65536 fields"},
		"annotations": {
			field(6, string(bytes.Repeat(field(7, ""), maxItems+1))), "Annotations has more than",
		},
	}
	sandbox := &fakeSandbox{}
	r := newRig(t, sandbox, AllowAll)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := r.raw.Call(t.Context(), "grpc.AgentService", "CreateContainer", rawMessage(tt.raw), &emptypb.Empty{})
			wantStatus(t, err, codes.InvalidArgument, tt.text)
			wantStatus(t, err, codes.InvalidArgument, "CreateContainerRequest")
		})
	}
	if calls := sandbox.calls(); len(calls) != 0 {
		t.Errorf("the sandbox was called: %q", calls)
	}
}

// TestUnknownFields: fields of a newer shim are dropped, so that neither gate nor handler sees them.
func TestUnknownFields(t *testing.T) {
	t.Parallel()
	raw := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "c1")
	raw = protowire.AppendVarint(protowire.AppendTag(raw, 1000, protowire.VarintType), 7)
	m := &pb.StartContainerRequest{}
	unmarshal := func(obj any) error { return proto.Unmarshal(raw, obj.(proto.Message)) }
	if err := decode(unmarshal, m); err != nil {
		t.Fatal(err)
	}
	if m.GetContainerId() != "c1" || len(m.ProtoReflect().GetUnknown()) != 0 {
		t.Errorf("decoded %v with unknown bytes %x", m, m.ProtoReflect().GetUnknown())
	}
}

// FuzzCreateContainer: bytes of a CreateContainerRequest never panic, and what is accepted has bounded parts.
func FuzzCreateContainer(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x0a, 0x05, 'x'})
	f.Add(encode(f, &pb.CreateContainerRequest{ContainerId: "c1", OCI: fullSpec()}))
	f.Add(encode(f, &pb.CreateContainerRequest{
		ContainerId: "c1", OCI: &pb.Spec{Process: &pb.Process{Args: []string{"sh"}}},
		Storages: []*pb.Storage{{Driver: "image_guest_pull", DriverOptions: []string{"image_guest_pull={}"}, Source: "r/i"}},
	}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := &pb.CreateContainerRequest{}
		if err := decode(func(obj any) error { return proto.Unmarshal(raw, obj.(proto.Message)) }, m); err != nil {
			return
		}
		c, err := containerConfig(m)
		if err != nil {
			return
		}
		if !validID(c.ID) || c.Spec == nil || len(c.Storages) > 256 {
			t.Errorf("accepted id %q, spec %v, %d storages", c.ID, c.Spec, len(c.Storages))
		}
	})
}
