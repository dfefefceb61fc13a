// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/rpc/pb/types"
)

// source hands out the bytes of a fuzz input. After its end come zeros, which always choose what is valid, or random
// numbers.
type source struct {
	data   []byte
	random *rand.Rand // nil: zeros
}

func (s *source) byte() byte {
	if len(s.data) == 0 {
		if s.random == nil {
			return 0
		}
		return byte(s.random.Uint32())
	}
	b := s.data[0]
	s.data = s.data[1:]
	return b
}

// below returns a number below n, which is 256 at most.
func (s *source) below(n int) int { return int(s.byte()) % n }

func (s *source) take(n int) []byte {
	n = min(n, len(s.data))
	b := s.data[:n]
	s.data = s.data[n:]
	return b
}

// method is one of the 44.
type method struct {
	service, name string
	in, out       protoreflect.MessageType
}

func methods() []method {
	var all []method
	for _, s := range []protoreflect.ServiceDescriptor{
		pb.File_rpc_pb_agent_proto.Services().ByName("AgentService"),
		pb.File_rpc_pb_health_proto.Services().ByName("Health"),
	} {
		for i := range s.Methods().Len() {
			m := s.Methods().Get(i)
			all = append(all, method{string(s.FullName()), string(m.Name()), messageType(m.Input()), messageType(m.Output())})
		}
	}
	return all
}

func messageType(d protoreflect.MessageDescriptor) protoreflect.MessageType {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // the generated code registers it
	}
	return t
}

// What no Go program can encode as a string takes the place of these when the request is encoded.
const (
	badUTF8 = "bad-utf-8"
	badNUL  = "bad-nul"
)

// generator makes requests for an agent with that run folder.
type generator struct {
	*source
	run string
	// tooLong is longer than any string that the agent takes.
	tooLong string
}

func newGenerator(data []byte, run string) generator {
	return generator{&source{data: data}, run, strings.Repeat("L", 140<<10)}
}

// request makes an encoded request: a valid one, a few changes to it, and a few to its encoding.
func (g generator) request(m method) []byte {
	in := g.valid(m)
	for range g.byte() >> 6 {
		g.change(in.ProtoReflect())
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(in)
	if err != nil {
		panic(err) // words are valid UTF-8
	}
	raw = bytes.ReplaceAll(raw, []byte(badUTF8), []byte("bad\xff\xc0\x80-8"))
	raw = bytes.ReplaceAll(raw, []byte(badNUL), []byte("bad\x00nul"))
	if len(raw) == 0 {
		return raw
	}
	switch g.below(16) {
	case 11:
		return raw[:g.below(256)*len(raw)/256]
	case 12:
		raw[g.below(256)*len(raw)/256] ^= 1 << g.below(8)
	case 13:
		return append(raw, raw...) // each field twice
	case 14:
		return append(raw, g.take(16)...)
	case 15:
		return append(raw, 0xfa, 0x3f, 0x01, 'x') // a field that the schema does not have
	}
	return raw
}

// valid makes a message that the agent may take.
func (g generator) valid(m method) proto.Message {
	shared := g.run + "/shared/containers/"
	ids := []string{"c1", "c2", "fail"}
	switch m.name {
	case "CreateSandbox":
		return &pb.CreateSandboxRequest{
			SandboxId: "pod", Hostname: "pod-1", Dns: []string{"nameserver 192.0.2.1"}, SandboxPidns: g.below(4) == 3,
			Storages: []*pb.Storage{{Driver: "ephemeral", Source: "shm", Fstype: "tmpfs", MountPoint: g.run + "/sandbox/shm", Options: []string{"size=65536k"}}},
		}
	case "CreateContainer":
		id := ids[g.below(len(ids))]
		return &pb.CreateContainerRequest{
			ContainerId: id, OCI: g.spec(id),
			Storages: []*pb.Storage{
				{Driver: "image_guest_pull", Source: "registry.example/i:1", Fstype: "overlay", MountPoint: shared + id + "/rootfs"},
				{Driver: "local", Source: "local", Fstype: "local", Options: []string{"mode=0777"}, MountPoint: shared + "pod/rootfs/local/v"},
				{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: g.run + "/sandbox/ephemeral/v"},
			}[:1+g.below(3)],
		}
	case "ExecProcess":
		p := g.spec("c1").GetProcess()
		p.Args = []string{[]string{"cat", "oom", "fail"}[g.below(3)]}
		return &pb.ExecProcessRequest{ContainerId: ids[g.below(2)], ExecId: []string{"e1", "e2"}[g.below(2)], Process: p}
	case "CopyFile":
		data := []byte(strings.Repeat("x", g.below(64)))
		return &pb.CopyFileRequest{
			Path: shared + []string{"f", "d/g", "link", "link/f"}[g.below(4)], FileSize: int64(len(data)), Data: data, DirMode: 1<<31 | 0o750,
			FileMode: []uint32{0o100644, 0o40755, 0o120777}[g.below(3)], Uid: 0, Gid: 0,
		}
	case "UpdateInterface":
		return &pb.UpdateInterfaceRequest{Interface: &types.Interface{
			Device: "eth0", Name: "eth0", HwAddr: "02:00:00:00:00:01", Mtu: 1500,
			IPAddresses: []*types.IPAddress{{Address: "192.0.2.2", Mask: "24"}},
		}}
	case "UpdateRoutes":
		return &pb.UpdateRoutesRequest{Routes: &pb.Routes{Routes: []*types.Route{{Device: "eth0", Gateway: "192.0.2.1"}}}}
	case "UpdateContainer":
		return &pb.UpdateContainerRequest{ContainerId: "c1", Resources: g.spec("c1").GetLinux().GetResources()}
	case "UpdateEphemeralMounts":
		return &pb.UpdateEphemeralMountsRequest{Storages: []*pb.Storage{
			{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: g.run + "/sandbox/ephemeral/v", Options: []string{"remount", "size=1m"}},
		}}
	}
	in := m.in.New()
	g.fill(in, 0)
	return in.Interface()
}

// spec is like those of the shim.
func (g generator) spec(id string) *pb.Spec {
	shared := g.run + "/shared/containers/"
	caps := []string{"CAP_CHOWN", "CAP_NET_BIND_SERVICE"}
	return &pb.Spec{
		Version: "1.1.0", Hostname: "pod-1", Root: &pb.Root{Path: shared + id + "/rootfs"},
		Process: &pb.Process{
			Terminal: g.below(4) == 3, Args: []string{"cat"}, Env: []string{"PATH=/bin"}, Cwd: "/", NoNewPrivileges: true, OOMScoreAdj: 969,
			User:         &pb.User{UID: 101, GID: 101, AdditionalGids: []uint32{101}},
			Capabilities: &pb.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []*pb.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Mounts: []*pb.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/etc/hosts", Type: "bind", Source: shared + "f", Options: []string{"rbind", "rprivate", "rw"}},
			{Destination: "/dev/shm", Type: "bind", Source: g.run + "/sandbox/shm", Options: []string{"rbind"}},
		},
		Annotations: map[string]string{"io.kubernetes.container.terminationMessagePath": "/etc/hosts", "io.kubernetes.cri.container-type": "container"},
		Linux: &pb.Linux{
			Sysctl: map[string]string{"net.ipv4.ip_forward": "0", "kernel.shm_rmid_forced": "1"}, CgroupsPath: "/pod/" + id,
			Namespaces: []*pb.LinuxNamespace{{Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "network"}},
			Resources: &pb.LinuxResources{
				Devices: []*pb.LinuxDeviceCgroup{{Access: "rwm"}}, Memory: &pb.LinuxMemory{Limit: 1 << 28},
				CPU: &pb.LinuxCPU{Shares: 512, Quota: 50000, Period: 100000, Cpus: "0-1"}, Pids: &pb.LinuxPids{Limit: 100},
			},
			Seccomp: &pb.LinuxSeccomp{
				DefaultAction: "SCMP_ACT_ERRNO", Syscalls: []*pb.LinuxSyscall{{Names: []string{"read"}, Action: "SCMP_ACT_ALLOW"}},
			},
			MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

// fill sets every field of a message.
func (g generator) fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		g.set(m, fields.Get(i), depth)
	}
}

// change changes one field of a message, or of one within.
func (g generator) change(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	if fields.Len() == 0 {
		return
	}
	fd := fields.Get(g.below(fields.Len()))
	switch within := fd.Kind() == protoreflect.MessageKind && m.Has(fd); {
	case within && fd.IsList() && g.below(4) > 0:
		list := m.Get(fd).List()
		g.change(list.Get(g.below(list.Len())).Message())
	case within && !fd.IsList() && !fd.IsMap() && g.below(8) > 0:
		g.change(m.Get(fd).Message())
	case g.below(4) == 1:
		m.Clear(fd)
	case fd.IsList() && m.Has(fd) && g.below(8) == 1: // the same again and again
		list := m.Mutable(fd).List()
		for range []int{1, 2, 300, 1100}[g.below(4)] {
			list.Append(list.Get(0))
		}
	default:
		g.set(m, fd, 0)
	}
}

// set sets a field, or adds to a list or map.
func (g generator) set(m protoreflect.Message, fd protoreflect.FieldDescriptor, depth int) {
	const maxDepth = 3
	switch {
	case depth > maxDepth:
	case fd.IsMap():
		key := g.scalar(fd.MapKey()).MapKey()
		if fd.MapValue().Kind() != protoreflect.MessageKind {
			m.Mutable(fd).Map().Set(key, g.scalar(fd.MapValue()))
		}
	case fd.IsList() && fd.Kind() == protoreflect.MessageKind:
		g.fill(m.Mutable(fd).List().AppendMutable().Message(), depth+1)
	case fd.IsList():
		m.Mutable(fd).List().Append(g.scalar(fd))
	case fd.Kind() == protoreflect.MessageKind:
		g.fill(m.Mutable(fd).Message(), depth+1)
	default:
		m.Set(fd, g.scalar(fd))
	}
}

func (g generator) scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		words := g.words(string(fd.Name()))
		return protoreflect.ValueOfString(words[g.below(len(words))])
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([][]byte{[]byte("x\n"), {}, []byte("../../sentinel/a"), {0xff, 0}, bytes.Repeat([]byte("y\n"), 1<<16), g.take(40)}[g.below(6)])
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(g.below(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(g.below(4) - 1))
	default:
		return g.numeral(fd)
	}
}

func (g generator) numeral(fd protoreflect.FieldDescriptor) protoreflect.Value {
	n := g.number(string(fd.Name()))
	switch fd.Kind() {
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n))
	default:
		return fd.Default()
	}
}

func (g generator) number(field string) int64 {
	first := map[string]int64{"signal": 15, "len": 32768, "timeout": 0, "row": 24, "column": 80, "usec": 1, "sec": 1}[field]
	numbers := []int64{
		first, 0, 1, 2, 9, 15, 19, 18, 10, 64, 65, 100, 1000, 4096, 65536, 1 << 20, 0o100644, 0o40755, 0o120777, 0o20666,
		-1, -1, -5, math.MaxInt32, math.MinInt32, math.MaxUint32, math.MaxInt64, math.MinInt64,
	}
	return numbers[g.below(len(numbers))]
}

// words are those that a field of that name may have, valid ones first.
func (g generator) words(field string) []string {
	shared := g.run + "/shared/containers/"
	paths := []string{
		shared + "f", shared + "d/g", shared + "link", shared + "link/f", shared + "../../../sentinel/a", shared + "d/../../../../sentinel/a",
		g.run + "/sandbox/shm", g.run + "/sandbox/ephemeral/v", shared + "pod/rootfs/local/v", g.run + "/c1/rootfs", g.run + "/c1/config.json",
		g.run + "/../sentinel/d", g.run, strings.TrimSuffix(shared, "/"), "/", "/etc/passwd", "/proc/1/ns/pid", "/dev/null", "relative",
		shared + strings.Repeat("a", 300), shared + strings.Repeat("x/", 200) + "x", "/" + strings.Repeat("long", 2000),
	}
	odd := []string{"", ".", "..", "../c1", "a b", badUTF8, badNUL, "ü€", strings.Repeat("l", 200), g.tooLong}
	words, ok := map[string][]string{
		"container_id": {"c1", "c2", "fail", "nobody", "sandbox", "shared", "C.1-_"},
		"exec_id":      {"", "e1", "e2", "c1", "nobody"},
		"sandbox_id":   {"pod", "other"},
		"log_type":     {"termination_log"},
		"driver":       {"ephemeral", "local", "image_guest_pull", "blk", "9p", "overlayfs", "virtio-fs", "nvdimm"},
		"fstype":       {"tmpfs", "local", "hugetlbfs", "overlay", "bind", "ext4"},
		"type":         {"bind", "proc", "tmpfs", "sysfs", "devpts", "mqueue", "cgroup", "pid", "network", "user", "c", "b", "a", "ext4"},
		"Type":         {"ipc", "uts", "mount", "network", "pid", "user", "cgroup", "time", "c", "b", "RLIMIT_CORE", "RLIMIT_NO"},
		"options":      {"ro", "rbind", "bind", "rshared", "size=1k", "size=-1", "mode=7777", "mode=99", "uid=0", "fsgid=4294967295", "remount", "pagesize=2M", "exec,suid,dev", "="},
		"mask":         {"24", "255.255.255.0", "255.0.255.0", "200", "-1"},
		"address":      {"192.0.2.2", "2001:db8::1", "::ffff:1.2.3.4", "fe80::1%eth0", "1.2.3"},
		"Access":       {"rwm", "r", "x"},
		"Args":         {"cat", "fail", "oom"},
		"Bounding":     {"CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NO"},
		"Effective":    {"CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NO"},
		"Env":          {"A=b", "A=sealed.a.b.c.d", "=", "A"},
		"key":          {"net.ipv4.ip_forward", "kernel.msgmax", "kernel.core_pattern", "net.ipv4.conf/../../kernel.x", "cdi.k8s.io/x", "io.kubernetes.cri.container-type"},
		"value":        {"1", "sandbox", "container", "vendor.example/class=device"},
		"CgroupsPath":  {"/pod/c1", "pod.slice:cri:c1", "/", "/../x", "/pod", "a:b", "/pod/c1/c2"},
	}[field]
	if !ok {
		return append(paths, odd...)
	}
	return append(append(words, odd...), paths[4], paths[15])
}
