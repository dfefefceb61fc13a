// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cloister-cc/cloister/rpc/pb"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fill sets every field of a message: numbers count up, so that no two are mixed up without a difference.
func fill(m protoreflect.Message, next *uint64) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch fd.FullName() {
		case "grpc.Spec.Solaris", "grpc.Spec.Windows": // refused
			continue
		}
		switch {
		case fd.IsMap():
			m.Mutable(fd).Map().Set(protoreflect.ValueOfString(string(fd.Name())+"-key").MapKey(), scalar(fd.MapValue(), next))
		case fd.IsList():
			list := m.Mutable(fd).List()
			for range 2 {
				if fd.Kind() == protoreflect.MessageKind {
					fill(list.AppendMutable().Message(), next)
					continue
				}
				list.Append(scalar(fd, next))
			}
		case fd.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(fd).Message(), next)
		default:
			m.Set(fd, scalar(fd, next))
		}
	}
}

func scalar(fd protoreflect.FieldDescriptor, next *uint64) protoreflect.Value {
	*next++
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		data, _ := json.Marshal(*next)
		return protoreflect.ValueOfString(string(fd.Name()) + "-" + string(data))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(*next))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(*next)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(*next))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(fd.Name()))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	default:
		return protoreflect.ValueOfUint32(uint32(*next))
	}
}

func fullSpec() *pb.Spec {
	s := &pb.Spec{}
	var next uint64
	fill(s.ProtoReflect(), &next)
	return s
}

func specJSON(t *testing.T, s *pb.Spec) string {
	t.Helper()
	out, err := specFromPB(s)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data) + "\n"
}

// TestSpecGolden translates a spec that has every field set.
func TestSpecGolden(t *testing.T) {
	t.Parallel()
	const golden = "testdata/full-spec.json"
	got := specJSON(t, fullSpec())
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("runtime spec (-want +got):\n%s", diff)
	}
}

// TestSpecLosesNothing clears one field of a full spec at a time, everywhere: each must make a difference to the result.
func TestSpecLosesNothing(t *testing.T) {
	t.Parallel()
	full := fullSpec()
	base := specJSON(t, full)
	n := 0
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if fd.Kind() == protoreflect.MessageKind && !fd.IsMap() {
				if fd.IsList() {
					walk(v.List().Get(0).Message())
				} else {
					walk(v.Message())
				}
			}
			n++
			saved := m.NewField(fd) // v is a view that is empty once the field is
			switch {
			case fd.IsMap():
				v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool { saved.Map().Set(k, e); return true })
			case fd.IsList():
				for i := range v.List().Len() {
					saved.List().Append(v.List().Get(i))
				}
			default:
				saved = v
			}
			m.Clear(fd)
			if specJSON(t, full) == base {
				t.Errorf("%s makes no difference", fd.FullName())
			}
			m.Set(fd, saved)
			return true
		})
	}
	walk(full.ProtoReflect())
	if n < 130 {
		t.Errorf("only %d fields were looked at", n)
	}
	if specJSON(t, full) != base {
		t.Error("the walk has changed the spec")
	}
}

func TestSpecZeroValues(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		in   *pb.Spec
		want string
	}{
		"empty": {&pb.Spec{}, `{"ociVersion":""}`},
		"empty messages": {
			&pb.Spec{Process: &pb.Process{}, Root: &pb.Root{}, Linux: &pb.Linux{
				Resources: &pb.LinuxResources{Memory: &pb.LinuxMemory{}, CPU: &pb.LinuxCPU{}, Pids: &pb.LinuxPids{}, BlockIO: &pb.LinuxBlockIO{}},
			}},
			`{"ociVersion":"","process":{"user":{"uid":0,"gid":0},"cwd":"","oomScoreAdj":0},"root":{"path":""},` +
				`"linux":{"resources":{"memory":{},"cpu":{},"pids":{},"blockIO":{}}}}`,
		},
		"device rules": {
			&pb.Spec{Linux: &pb.Linux{Resources: &pb.LinuxResources{Devices: []*pb.LinuxDeviceCgroup{
				{Access: "rwm"},
				{Allow: true, Type: "c", Major: 1, Minor: 3, Access: "rw"},
				{Allow: true, Type: "c", Major: 4, Minor: 0},
				{Allow: true, Type: "c", Major: 136, Minor: -1},
				{Allow: true, Type: "b", Major: -1, Minor: -1},
			}}}},
			`{"ociVersion":"","linux":{"resources":{"devices":[{"allow":false,"access":"rwm"},` +
				`{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},{"allow":true,"type":"c","major":4,"minor":0},` +
				`{"allow":true,"type":"c","major":136},{"allow":true,"type":"b"}]}}}`,
		},
		"errno 0": {
			&pb.Spec{Linux: &pb.Linux{Seccomp: &pb.LinuxSeccomp{Syscalls: []*pb.LinuxSyscall{
				{Names: []string{"a"}, ErrnoRet: &pb.LinuxSyscall_Errnoret{}}, {Names: []string{"b"}},
			}}}},
			`{"ociVersion":"","linux":{"seccomp":{"defaultAction":"","syscalls":[{"names":["a"],"action":"","errnoRet":0},{"names":["b"],"action":""}]}}}`,
		},
		"device mode": {
			&pb.Spec{Linux: &pb.Linux{Devices: []*pb.LinuxDevice{{Path: "/dev/x", FileMode: 0o20666}}}},
			`{"ociVersion":"","linux":{"devices":[{"path":"/dev/x","type":"","major":0,"minor":0,"fileMode":438,"uid":0,"gid":0}]}}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := specFromPB(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(out)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSpecRefusals(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*pb.Spec{
		"Solaris":       {Solaris: &pb.Solaris{}},
		"Windows":       {Windows: &pb.Windows{}},
		"oom score":     {Process: &pb.Process{OOMScoreAdj: -1001}},
		"weight":        {Linux: &pb.Linux{Resources: &pb.LinuxResources{BlockIO: &pb.LinuxBlockIO{Weight: 1 << 16}}}},
		"device weight": {Linux: &pb.Linux{Resources: &pb.LinuxResources{BlockIO: &pb.LinuxBlockIO{WeightDevice: []*pb.LinuxWeightDevice{{LeafWeight: 1 << 16}}}}}},
	} {
		if out, err := specFromPB(proto.Clone(s).(*pb.Spec)); err == nil {
			t.Errorf("%s: accepted as %+v", name, out)
		}
	}
}
