// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// What only a privileged guest offers is refused elsewhere with a hint at how to allow it.
func TestPrivileged(t *testing.T) {
	const ok = runDir + "/shared/containers/f"
	for name, ask := range map[string]func(s *specs.Spec){
		"capability": func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN"}}
		},
		"device": func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
		},
		"writable sysfs":     mounting(specs.Mount{Destination: "/sys", Type: "sysfs", Options: []string{"rw"}}),
		"shared mount":       mounting(bind(ok, "rbind", "rshared")),
		"shared root":        func(s *specs.Spec) { s.Linux.RootfsPropagation = "rshared" },
		"guest's devices":    mounting(bind("/dev")),
		"guest's sysfs":      mounting(bind("/sys/class/net")),
		"guest's whole /sys": mounting(specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rw"}}),
		"root mapped": func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}}
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := valid()
			ask(s)
			o := options()
			if _, err := Convert(s, o); err == nil || !strings.HasSuffix(err.Error(), hint) {
				t.Errorf("error %v, want one that ends with %q", err, hint)
			}
			o.Privileged = true
			if _, err := Convert(s, o); err != nil {
				t.Errorf("privileged: %v", err)
			}
		})
	}
}

// Even a privileged guest masks what a spec with masked paths did not think of, and only a spec without any is taken
// at its word.
func TestPrivilegedPaths(t *testing.T) {
	o := options()
	o.Privileged = true
	s := valid()
	s.Linux.MaskedPaths = []string{"/srv"}
	result, err := Convert(s, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := result.Spec.Linux; len(got.MaskedPaths) != len(masked)+1 || got.ReadonlyPaths != nil {
		t.Errorf("masked %q, read-only %q", got.MaskedPaths, got.ReadonlyPaths)
	}
}

func TestDevicesRefused(t *testing.T) {
	fuse := specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}
	for name, devices := range map[string][]specs.LinuxDevice{
		"relative":       {{Path: "dev/x", Type: "c"}},
		"root":           {{Path: "/", Type: "c"}},
		"type":           {{Path: "/dev/x", Type: "f"}},
		"negative":       {{Path: "/dev/x", Type: "c", Major: -1}},
		"major":          {{Path: "/dev/x", Type: "c", Major: maxMajor + 1}},
		"minor":          {{Path: "/dev/x", Type: "b", Minor: maxMinor + 1}},
		"twice":          {fuse, fuse},
		"disk as null":   {{Path: "/dev/null", Type: "b", Major: 8}},
		"more than many": make([]specs.LinuxDevice, maxDevices+1),
	} {
		if _, _, err := convertDevices(&specs.Linux{Devices: devices}, true, nil); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestDeviceRules(t *testing.T) {
	all := specs.LinuxDeviceCgroup{Allow: true, Access: "mrw"}
	denied := specs.LinuxDeviceCgroup{Access: "rwm"}
	fuse := specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}
	readFuse := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: new(int64(10)), Minor: new(int64(229)), Access: "r"}
	for name, test := range map[string]struct {
		rules []specs.LinuxDeviceCgroup
		caps  *specs.LinuxCapabilities
		want  []string // access of the rules that follow the default ones
	}{
		"none":         {want: []string{"rwm"}},
		"read only":    {rules: []specs.LinuxDeviceCgroup{denied, readFuse}, want: []string{"r"}},
		"all":          {rules: []specs.LinuxDeviceCgroup{all}, want: []string{"rwm", "rwm"}},
		"all, denied":  {rules: []specs.LinuxDeviceCgroup{all, denied}, want: []string{"rwm"}},
		"some of all":  {rules: []specs.LinuxDeviceCgroup{{Allow: true, Access: "r"}}, want: []string{"rwm"}},
		"by SYS_ADMIN": {caps: &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN"}}, want: []string{"rwm", "rwm"}},
	} {
		_, rules, err := convertDevices(&specs.Linux{Devices: []specs.LinuxDevice{fuse}, Resources: &specs.LinuxResources{Devices: test.rules}}, true, test.caps)
		if err != nil {
			t.Fatal(name, err)
		}
		var got []string
		for _, r := range rules[len(deviceRules()):] {
			got = append(got, r.Access)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestCheckMappings(t *testing.T) {
	ok := specs.LinuxIDMapping{ContainerID: 0, HostID: 1000, Size: 10}
	many := make([]specs.LinuxIDMapping, maxMappings+1)
	for i := range many {
		many[i] = specs.LinuxIDMapping{ContainerID: uint32(i), HostID: uint32(i) + 1000, Size: 1}
	}
	for _, test := range []struct {
		name string
		in   []specs.LinuxIDMapping
		want string
	}{
		{"one", []specs.LinuxIDMapping{ok}, ""},
		{"two", []specs.LinuxIDMapping{ok, {ContainerID: 10, HostID: 1010, Size: 1}}, ""},
		{"the most", many[:maxMappings], ""},
		{"all ids but root", []specs.LinuxIDMapping{{HostID: 1, Size: math.MaxUint32 - 1}}, ""},
		{"none", nil, "there are 0"},
		{"too many", many, "there are 341"},
		{"empty", []specs.LinuxIDMapping{{HostID: 1000}}, "empty"},
		{"past the end", []specs.LinuxIDMapping{{HostID: math.MaxUint32, Size: 1}}, "beyond"},
		{"overflow", []specs.LinuxIDMapping{{HostID: 2, Size: math.MaxUint32}}, "beyond"},
		{"overlap inside", []specs.LinuxIDMapping{ok, {ContainerID: 9, HostID: 5000, Size: 1}}, "overlaps"},
		{"overlap outside", []specs.LinuxIDMapping{ok, {ContainerID: 10, HostID: 999, Size: 2}}, "overlaps"},
		{"root of the guest", []specs.LinuxIDMapping{{HostID: 0, Size: 5}}, "root of the guest"},
		{"no root", []specs.LinuxIDMapping{{ContainerID: 1, HostID: 1000, Size: 5}}, "root of the container"},
	} {
		err := checkMappings(test.in, false)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", test.name, err, test.want)
		}
	}
}

func TestUserNamespaceRefuses(t *testing.T) {
	s := valid()
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 1000, Size: 5}}
	if _, err := Convert(s, options()); err == nil || !strings.Contains(err.Error(), "without a user namespace") {
		t.Errorf("mappings alone: %v", err)
	}
	s.Linux.GIDMappings = s.Linux.UIDMappings
	s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}}
	s.Linux.Sysctl = map[string]string{"kernel.sem": "1"}
	if _, err := Convert(s, options()); err == nil || !strings.Contains(err.Error(), "kernel.sem") {
		t.Errorf("a sysctl of the sandbox: %v", err)
	}
}

func TestJoin(t *testing.T) {
	s := valid()
	s.Hostname = "own"
	o := Options{ID: "id", RunDir: runDir, Hostname: "pod"}
	result, err := Convert(s, o)
	if err != nil {
		t.Fatal(err)
	}
	if result.Spec.Hostname != "own" || result.Notes != nil {
		t.Errorf("in a UTS namespace of its own: host name %q, notes %q", result.Spec.Hostname, result.Notes)
	}
	result.Join("/ipc", "/uts", "/pid")
	if diff := cmp.Diff(namespaces("/ipc", "/uts", "/pid"), result.Spec.Linux.Namespaces); diff != "" {
		t.Error(diff)
	}
	if result.Spec.Hostname != "" || len(result.Notes) != 1 || !strings.Contains(result.Notes[0], `"own"`) {
		t.Errorf("joined: host name %q, notes %q: it renames the sandbox, or nobody is told that it does not", result.Spec.Hostname, result.Notes)
	}
	s.Hostname, o.UTS = "pod", "/uts"
	if result, err = Convert(s, o); err != nil || result.Spec.Hostname != "" || result.Notes != nil {
		t.Errorf("the sandbox's own name: %q, notes %q, %v", result.Spec.Hostname, result.Notes, err)
	}
}

func TestSeccompRefuses(t *testing.T) {
	allow := func(change func(*specs.LinuxSyscall)) specs.LinuxSeccomp {
		call := specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 5, Op: specs.OpMaskedEqual}}}
		change(&call)
		return specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{call}}
	}
	for name, test := range map[string]struct {
		in   specs.LinuxSeccomp
		want string
	}{
		"right":           {allow(func(*specs.LinuxSyscall) {}), ""},
		"no action":       {specs.LinuxSeccomp{}, "action"},
		"notify":          {allow(func(c *specs.LinuxSyscall) { c.Action = specs.ActNotify }), "SCMP_ACT_NOTIFY"},
		"default notify":  {specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, "SCMP_ACT_NOTIFY"},
		"success":         {allow(func(c *specs.LinuxSyscall) { c.Action, c.ErrnoRet = specs.ActErrno, new(uint(0)) }), "error number 0"},
		"default success": {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: new(uint(0))}, "error number 0"},
		"prctl": {allow(func(c *specs.LinuxSyscall) {
			c.Names, c.Action, c.ErrnoRet = []string{"read", "prctl"}, specs.ActErrno, new(uint(22))
		}), "EINVAL"},
		"default prctl": {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: new(uint(22))}, "EINVAL"},
		"read":          {allow(func(c *specs.LinuxSyscall) { c.Action, c.ErrnoRet = specs.ActErrno, new(uint(22)) }), ""},
		"errno":         {allow(func(c *specs.LinuxSyscall) { c.ErrnoRet = new(uint(maxErrno + 1)) }), "error number"},
		"name":          {allow(func(c *specs.LinuxSyscall) { c.Names = []string{"re ad"} }), "re ad"},
		"index":         {allow(func(c *specs.LinuxSyscall) { c.Args[0].Index = 6 }), "argument 6"},
		"operator":      {allow(func(c *specs.LinuxSyscall) { c.Args[0].Op = "SCMP_CMP_X" }), "SCMP_CMP_X"},
		"conditions":    {allow(func(c *specs.LinuxSyscall) { c.Args = slices.Repeat(c.Args, 7) }), "7 conditions"},
		"many names":    {allow(func(c *specs.LinuxSyscall) { c.Names = slices.Repeat(c.Names, maxSyscalls+1) }), "more than"},
		"architecture":  {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"s390x"}}, "s390x"},
		"flag":          {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NEW_LISTENER"}}, "NEW_LISTENER"},
		"listener data": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerMetadata: "x"}, "listener"},
	} {
		got, err := convertSeccomp(&test.in)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, test.want)
		}
		if err == nil && cmp.Diff(&test.in, got) != "" {
			t.Errorf("%s: changed:\n%s", name, cmp.Diff(&test.in, got))
		}
	}
}

func TestResources(t *testing.T) {
	in := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
		Memory:  &specs.LinuxMemory{Limit: new(int64(-1)), Swap: new(int64(-1))},
		CPU:     &specs.LinuxCPU{Shares: new(uint64(1 << 20)), Quota: new(int64(-1))},
	}
	got, notes, err := Resources(in, Options{Controllers: []string{"cpu"}})
	want := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: new(uint64(maxShares)), Quota: new(int64(-1))}}
	if err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	if len(notes) != 1 || !strings.HasPrefix(notes[0], "memory limit not available") {
		t.Errorf("notes %q", notes)
	}
	if got, notes, err := Resources(nil, Options{}); err != nil || notes != nil || cmp.Diff(&specs.LinuxResources{}, got) != "" {
		t.Errorf("nothing to update: %v, %q, %v", got, notes, err)
	}
	got, notes, err = Resources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: new(int64(5))}}, Options{})
	if err != nil || got.Memory.Swap != nil || len(notes) != 1 {
		t.Errorf("swap without memory: %v, %q, %v", got, notes, err)
	}
}

func TestResourcesRefuses(t *testing.T) {
	many := make(map[string]string)
	for i := range maxUnified + 1 {
		many["memory.x"+strings.Repeat("x", i)] = ""
	}
	for name, in := range map[string]specs.LinuxResources{
		"memory":              {Memory: &specs.LinuxMemory{Limit: new(int64(-2))}},
		"swap under memory":   {Memory: &specs.LinuxMemory{Limit: new(int64(2)), Swap: new(int64(1))}},
		"swap under no limit": {Memory: &specs.LinuxMemory{Limit: new(int64(-1)), Swap: new(int64(1))}},
		"quota":               {CPU: &specs.LinuxCPU{Quota: new(int64(-2))}},
		"period":              {CPU: &specs.LinuxCPU{Period: new(uint64(999))}},
		"idle":                {CPU: &specs.LinuxCPU{Idle: new(int64(2))}},
		"huge pages":          {HugepageLimits: make([]specs.LinuxHugepageLimit, maxHugepageLimits+1)},
		"files":               {Unified: many},
	} {
		if _, _, err := Resources(&in, Options{}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// A further process has no more than the container: not even in a privileged guest.
func TestExecCapabilities(t *testing.T) {
	admin := &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN"}}
	in := &specs.Process{Args: []string{"id"}, Cwd: "/", Capabilities: admin}
	if _, err := ExecProcess(in, &specs.Process{Args: []string{"/init"}, Cwd: "/"}); err == nil {
		t.Error("more capabilities than the container's are taken")
	}
	if _, err := ExecProcess(in, &specs.Process{Args: []string{"/init"}, Cwd: "/", Capabilities: admin}); err != nil {
		t.Errorf("those of the container: %v", err)
	}
}

func TestVolumes(t *testing.T) {
	o := options()
	o.Volumes = []string{"/run/volume"}
	for source, ok := range map[string]bool{"/run/volume": true, "/run/volume/link": false, "/run": false} {
		if _, err := convertBind(bind(source), o); (err == nil) != ok {
			t.Errorf("%s: %v", source, err)
		}
		local := bind(source)
		local.Type = "local" // as the shim says it of emptyDirs
		if m, err := convertBind(local, o); (err == nil) != ok || err == nil && m.Type != "bind" {
			t.Errorf("%s as a local volume: %v, %v", source, m, err)
		}
	}
	local := bind(runDir + "/shared/containers/x")
	local.Type = "local"
	if _, err := convertBind(local, o); err == nil {
		t.Error("a file from the host was taken for a local volume")
	}
}

func TestProcessRefuses(t *testing.T) {
	for name, spoil := range map[string]func(p *specs.Process){
		"rows":    func(p *specs.Process) { p.ConsoleSize = &specs.Box{Height: maxConsole + 1} },
		"columns": func(p *specs.Process) { p.ConsoleSize = &specs.Box{Width: maxConsole + 1} },
		"groups":  func(p *specs.Process) { p.User.AdditionalGids = make([]uint32, maxGroups+1) },
		"umask":   func(p *specs.Process) { p.User.Umask = new(uint32(0o1000)) },
	} {
		p := valid().Process
		spoil(p)
		if _, err := ConvertProcess(p); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
