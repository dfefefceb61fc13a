// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package pb_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/rpc/pb/types"
)

// TestSchema compares what was compiled into the binary with the checked-in facts of the wire schema: a field number,
// type or name that drifts would talk past every shim without any error.
func TestSchema(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/agent-schema.txt")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimRight(line, "\n"); line != "" && !strings.HasPrefix(line, "#") {
			want = append(want, line)
		}
	}
	if len(want) < 500 {
		t.Fatalf("the schema has %d lines, which cannot be all of it", len(want))
	}
	var got []string
	for _, f := range []protoreflect.FileDescriptor{
		pb.File_rpc_pb_agent_proto, pb.File_rpc_pb_health_proto, pb.File_rpc_pb_oci_proto,
		pb.File_rpc_pb_csi_proto, types.File_rpc_pb_types_types_proto,
	} {
		got = append(got, renderFile(f)...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("compiled descriptors differ from testdata/agent-schema.txt (-want +got):\n%s", diff)
	}
}

func renderFile(f protoreflect.FileDescriptor) []string {
	base := f.Path()[strings.LastIndex(f.Path(), "/")+1:]
	out := []string{fmt.Sprintf("file %s: package %s, syntax %s", base, f.Package(), f.Syntax())}
	for i := range f.Services().Len() {
		s := f.Services().Get(i)
		out = append(out, "service "+string(s.FullName()))
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			if m.IsStreamingClient() || m.IsStreamingServer() {
				out = append(out, "  streaming!")
			}
			out = append(out, fmt.Sprintf("  %s(%s) %s", m.Name(), m.Input().FullName(), m.Output().FullName()))
		}
	}
	out = append(out, renderEnums(f.Enums())...)
	for i := range f.Messages().Len() {
		m := f.Messages().Get(i)
		out = append(out, "message "+string(m.FullName()))
		for j := range m.Fields().Len() {
			fd := m.Fields().Get(j)
			out = append(out, fmt.Sprintf("  %d %s: %s", fd.Number(), fd.Name(), renderType(fd)))
		}
		out = append(out, renderEnums(m.Enums())...)
	}
	return out
}

func renderEnums(enums protoreflect.EnumDescriptors) []string {
	var out []string
	for i := range enums.Len() {
		e := enums.Get(i)
		line := "enum " + string(e.FullName()) + ":"
		for j := range e.Values().Len() {
			v := e.Values().Get(j)
			line += fmt.Sprintf(" %s=%d", v.Name(), v.Number())
		}
		out = append(out, line)
	}
	return out
}

func renderType(fd protoreflect.FieldDescriptor) string {
	switch {
	case fd.IsMap():
		return fmt.Sprintf("map<%s, %s>", renderKind(fd.MapKey()), renderKind(fd.MapValue()))
	case fd.IsList():
		return "repeated " + renderKind(fd)
	case fd.ContainingOneof() != nil:
		return fmt.Sprintf("%s (oneof %s)", renderKind(fd), fd.ContainingOneof().Name())
	default:
		return renderKind(fd)
	}
}

func renderKind(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return string(fd.Message().FullName())
	case protoreflect.EnumKind:
		return string(fd.Enum().FullName())
	default:
		return fd.Kind().String()
	}
}
