// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files anew")

const runDir = "/run/kata-containers"

func options() Options {
	return Options{ID: "c0ffee", RunDir: runDir, Rootfs: runDir + "/c0ffee/rootfs", IPC: "/proc/1/fd/7", UTS: "/proc/1/fd/8"}
}

func TestGolden(t *testing.T) {
	for name, o := range map[string]Options{
		"container": {ID: "c0ffee", RunDir: runDir, Rootfs: runDir + "/c0ffee/rootfs", IPC: "/proc/1/fd/7", UTS: "/proc/1/fd/8", PID: "/proc/1/fd/9"},
		"pause":     {ID: "f00d", RunDir: runDir, Rootfs: runDir + "/f00d/rootfs", IPC: "/proc/1/fd/7", UTS: "/proc/1/fd/8"},
		"minimal":   {ID: "mini", RunDir: runDir, Rootfs: runDir + "/mini/rootfs"},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join("testdata", name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			var in, before specs.Spec
			for _, s := range []*specs.Spec{&in, &before} {
				if err := json.Unmarshal(data, s); err != nil {
					t.Fatal(err)
				}
			}
			result, err := Convert(&in, o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, in); diff != "" {
				t.Errorf("the argument was changed:\n%s", diff)
			}
			got, err := json.MarshalIndent(result, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
				t.Errorf("differs from %s (-update writes it anew):\n%s", golden, diff)
			}
		})
	}
}

// valid returns a spec that Convert takes, to be spoiled.
func valid() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Args: []string{"/x"}, Cwd: "/"},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc"}},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{}},
	}
}

func bind(source string, options ...string) specs.Mount {
	return specs.Mount{Destination: "/x", Type: "bind", Source: source, Options: options}
}

func mounting(m specs.Mount) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) }
}

func TestConvertRefuses(t *testing.T) {
	const ok = runDir + "/shared/containers/f"
	for name, test := range map[string]struct {
		spoil func(s *specs.Spec)
		want  string
	}{
		"no process":            {func(s *specs.Spec) { s.Process = nil }, "process: missing"},
		"no args":               {func(s *specs.Spec) { s.Process.Args = nil }, "nothing to run"},
		"empty arg":             {func(s *specs.Spec) { s.Process.Args = []string{""} }, "nothing to run"},
		"zero byte in arg":      {func(s *specs.Spec) { s.Process.Args = []string{"a\x00b"} }, "zero byte"},
		"zero byte in env":      {func(s *specs.Spec) { s.Process.Env = []string{"A=\x00"} }, "zero byte"},
		"env without name":      {func(s *specs.Spec) { s.Process.Env = []string{"=x"} }, "NAME=VALUE"},
		"env without value":     {func(s *specs.Spec) { s.Process.Env = []string{"x"} }, "NAME=VALUE"},
		"relative cwd":          {func(s *specs.Spec) { s.Process.Cwd = "x" }, "working folder"},
		"no cwd":                {func(s *specs.Spec) { s.Process.Cwd = "" }, "working folder"},
		"zero byte in cwd":      {func(s *specs.Spec) { s.Process.Cwd = "/a\x00" }, "working folder"},
		"oom":                   {func(s *specs.Spec) { s.Process.OOMScoreAdj = new(-1001) }, "OOM score"},
		"scheduler":             {func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{} }, "not offered"},
		"capability":            {func(s *specs.Spec) { s.Process.Capabilities = &specs.LinuxCapabilities{Ambient: []string{"all"}} }, `"all" is not the name`},
		"rlimit":                {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "NOFILE"}} }, "limit"},
		"rlimit soft over hard": {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1}} }, "limit"},
		"rlimit twice": {func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_CORE"}}
		}, "twice"},
		"host name":      {func(s *specs.Spec) { s.Hostname = "a b" }, "host name"},
		"long host name": {func(s *specs.Spec) { s.Hostname = strings.Repeat("a", 65) }, "host name"},
		"namespace path": {func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "mount", Path: "/proc/1/ns/mnt"}}
		}, "path of the host"},
		"user namespace":        {func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "user"}} }, "user namespace"},
		"id mappings":           {func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, "id mappings"},
		"disk":                  {func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/dm-0", Type: "b", Major: 253}} }, "/dev/dm-0"},
		"disk called null":      {func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Type: "b", Major: 253}} }, "/dev/null"},
		"seccomp listener":      {func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{ListenerPath: "/run/x"} }, "listener"},
		"shared propagation":    {func(s *specs.Spec) { s.Linux.RootfsPropagation = "rshared" }, "propagation"},
		"personality":           {func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "LINUX32"} }, "personality"},
		"sysctl of the guest":   {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "|/x"} }, "kernel.core_pattern"},
		"sysctl with dots":      {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.//.//.kernel.core_pattern": "|/x"} }, "core_pattern"},
		"sysctl with slash":     {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net/../kernel/core_pattern": "|/x"} }, "core_pattern"},
		"sysctl empty part":     {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net..x": "1"} }, "net..x"},
		"sysctl of two lines":   {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.x": "1\n2"} }, "not one line"},
		"masked path":           {func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"../x"} }, "masked"},
		"cgroup dots":           {func(s *specs.Spec) { s.Linux.CgroupsPath = "/a/../.." }, "cgroup path"},
		"cgroup dots by colon":  {func(s *specs.Spec) { s.Linux.CgroupsPath = "a:..:b" }, "cgroup path"},
		"cgroup file":           {func(s *specs.Spec) { s.Linux.Resources.Unified = map[string]string{"../x.y": ""} }, "cgroup file"},
		"cgroup core file":      {func(s *specs.Spec) { s.Linux.Resources.Unified = map[string]string{"cgroup.procs": "1"} }, "cgroup file"},
		"huge page size":        {func(s *specs.Spec) { s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "../1"}} }, "huge page"},
		"overlay":               {mounting(specs.Mount{Destination: "/x", Type: "overlay", Options: []string{"lowerdir=/:/cloister"}}), `"overlay" is not offered`},
		"ext4":                  {mounting(specs.Mount{Destination: "/x", Type: "ext4", Source: "/dev/vda"}), `"ext4" is not offered`},
		"no type":               {mounting(specs.Mount{Destination: "/x", Source: "/"}), `"" is not offered`},
		"on root":               {mounting(specs.Mount{Destination: "/", Type: "tmpfs"}), "mounted over"},
		"on relative":           {mounting(specs.Mount{Destination: "x", Type: "tmpfs"}), "absolute"},
		"on root by dots":       {mounting(specs.Mount{Destination: "/x/../..", Type: "tmpfs"}), "mounted over"},
		"tmpfs option":          {mounting(specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"tmpcopyup"}}), "tmpcopyup"},
		"proc option":           {mounting(specs.Mount{Destination: "/x", Type: "proc", Options: []string{"size=1"}}), "size=1"},
		"bind of guest":         {mounting(bind("/cloister/secrets")), "neither below"},
		"bind of run dir":       {mounting(bind(runDir)), "neither below"},
		"bind of a rootfs":      {mounting(bind(runDir + "/other/rootfs/x")), "neither below"},
		"bind out by dots":      {mounting(bind(ok + "/../../../../cloister")), "clean absolute"},
		"bind of the like":      {mounting(bind(runDir + "/shared/containers-x/y")), "neither below"},
		"bind in shared memory": {mounting(bind(runDir + "/sandbox/shm/link")), "neither below"},
		"bind of the sandbox":   {mounting(bind(runDir + "/sandbox")), "neither below"},
		"proc elsewhere":        {mounting(specs.Mount{Destination: "/x", Type: "proc"}), "on /proc only"},
		"sysfs elsewhere":       {mounting(specs.Mount{Destination: "/x", Type: "sysfs", Options: []string{"ro"}}), "on /sys only"},
		"sysfs to write":        {mounting(specs.Mount{Destination: "/sys", Type: "sysfs"}), "read-only"},
		"sysfs to write after":  {mounting(specs.Mount{Destination: "/sys", Type: "sysfs", Options: []string{"ro", "rw"}}), "read-only"},
		"privileged": {func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Ambient: []string{"CAP_SYS_ADMIN"}}
		}, "CAP_SYS_ADMIN is not offered"},
		"file handles": {func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_DAC_READ_SEARCH"}}
		}, "not offered"},
		"bind relative": {mounting(bind("shared/containers/x")), "clean absolute"},
		"bind shared":   {mounting(bind(ok, "rbind", "rshared")), "rshared"},
		"bind idmap":    {mounting(bind(ok, "idmap")), "idmap"},
		"bind as proc":  {mounting(specs.Mount{Destination: "/x", Type: "proc", Source: "/", Options: []string{"rbind"}}), "contradiction"},
		"bind by option": {mounting(specs.Mount{
			Destination: "/x", Type: "none", Source: "/", Options: []string{"bind"},
		}), "neither below"},
		"mount id mapping": {mounting(specs.Mount{
			Destination: "/x", Type: "tmpfs", UIDMappings: []specs.LinuxIDMapping{{}},
		}), "id mappings"},
		"too many mounts": {func(s *specs.Spec) { s.Mounts = make([]specs.Mount, maxMounts+1) }, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			s := valid()
			if _, err := Convert(s, options()); err != nil {
				t.Fatalf("the spec is refused as it is: %v", err)
			}
			test.spoil(s)
			if _, err := Convert(s, options()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
	if _, err := Convert(nil, options()); err == nil {
		t.Error("no spec is taken")
	}
}

// A spec cannot uncover what shows or steers the whole guest.
func TestConvertGuards(t *testing.T) {
	s := valid()
	s.Linux.MaskedPaths = []string{"/srv/hidden", "/proc/kcore"}
	result, err := Convert(s, options())
	if err != nil {
		t.Fatal(err)
	}
	linux := result.Spec.Linux
	for _, p := range []string{"/proc/kcore", "/proc/keys", "/sys/firmware", "/srv/hidden"} {
		if !slices.Contains(linux.MaskedPaths, p) {
			t.Errorf("%s is not masked", p)
		}
	}
	if len(linux.MaskedPaths) != len(masked)+1 {
		t.Errorf("masked twice: %q", linux.MaskedPaths)
	}
	for _, p := range []string{"/proc/sys", "/proc/sysrq-trigger"} {
		if !slices.Contains(linux.ReadonlyPaths, p) {
			t.Errorf("%s can be written", p)
		}
	}
	for _, c := range refused {
		if !capability.MatchString(c) {
			t.Errorf("%s is not the name of a capability", c)
		}
	}
}

func TestConvertCleans(t *testing.T) {
	s := valid()
	s.Process.Cwd = "/app/"
	s.Mounts = []specs.Mount{{Destination: "/data/../srv/", Type: "tmpfs"}}
	result, err := Convert(s, options())
	if err != nil {
		t.Fatal(err)
	}
	if got := result.Spec; got.Process.Cwd != "/app" || got.Mounts[0].Destination != "/srv" {
		t.Errorf("working folder %q, destination %q", got.Process.Cwd, got.Mounts[0].Destination)
	}
}

func TestCgroupPath(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", "/containers/id"},
		{"/", "/containers/id"},
		{"::", "/containers/id"},
		{"/kubepods/pod1/abc", "/kubepods/pod1/abc"},
		{"kubepods//pod1/abc/", "/kubepods/pod1/abc"},
		{"system.slice:cri-containerd:abc", "/system.slice/cri-containerd/abc"},
		{"/../abc", ""},
		{"/a/./b", ""},
		{"/a b", ""},
		{"/a/\x00", ""},
		{strings.Repeat("/a", 33), ""},
		{"/" + strings.Repeat("a", 256), ""},
	} {
		got, err := cgroupPath(test.in, "id")
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%q: %q, %v; want %q", test.in, got, err, test.want)
		}
	}
}

func TestCgroupsOverlap(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"/a", "/a", true},
		{"/a", "/a/b", true},
		{"/a", "/ab", false},
		{"/a/b", "/a/c", false},
	} {
		if CgroupsOverlap(test.a, test.b) != test.want || CgroupsOverlap(test.b, test.a) != test.want {
			t.Errorf("%s and %s: not %t", test.a, test.b, test.want)
		}
	}
}

func TestExecProcess(t *testing.T) {
	caps := &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}}
	init := &specs.Process{
		Args: []string{"/init"}, Env: []string{"A=1"}, Cwd: "/srv", Capabilities: caps, NoNewPrivileges: true,
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}, OOMScoreAdj: new(7), User: specs.User{UID: 9},
	}
	got, err := ExecProcess(&specs.Process{Args: []string{"id"}}, init)
	want := &specs.Process{
		Args: []string{"id"}, Env: []string{"A=1"}, Cwd: "/srv", Capabilities: caps, NoNewPrivileges: true,
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}, OOMScoreAdj: new(7),
	}
	if err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("defaults: %v\n%s", err, cmp.Diff(want, got))
	}
	own := &specs.Process{
		Args: []string{"id"}, Env: []string{"B=2"}, Cwd: "/tmp", Capabilities: &specs.LinuxCapabilities{}, User: specs.User{UID: 5},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CPU"}}, OOMScoreAdj: new(8),
	}
	got, err = ExecProcess(own, &specs.Process{Args: []string{"/init"}, Cwd: "/"})
	if err != nil || cmp.Diff(own, got) != "" {
		t.Errorf("own values: %v\n%s", err, cmp.Diff(own, got))
	}
	if _, err := ExecProcess(nil, init); err == nil {
		t.Error("no process is taken")
	}
}

// Whatever the host sends, the result must hold nothing that Convert promises to leave out.
func FuzzConvert(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.json")
	if err != nil || len(seeds) == 0 {
		f.Fatal("no seeds: ", err)
	}
	for _, seed := range seeds {
		data, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var in specs.Spec
		if json.Unmarshal(data, &in) != nil {
			return
		}
		result, err := Convert(&in, options())
		if err != nil {
			return
		}
		s := result.Spec
		if s.Hooks != nil || s.Annotations != nil || s.Linux.Devices != nil || s.Root.Path != options().Rootfs {
			t.Error("hooks, annotations, devices or a root of the host")
		}
		for _, m := range s.Mounts {
			if m.Type != "bind" && m.Source != m.Type {
				t.Errorf("mount source %q of type %q", m.Source, m.Type)
			}
			if m.Type == "bind" && !strings.HasPrefix(m.Source, runDir+"/s") || strings.Contains(m.Source, "..") && filepath.Clean(m.Source) != m.Source {
				t.Errorf("bind mount of %q", m.Source)
			}
			if slices.Contains(m.Options, "bind") && m.Type != "bind" {
				t.Errorf("bind mount in the disguise of %q", m.Type)
			}
		}
		if !slices.Contains(s.Linux.ReadonlyPaths, "/proc/sys") {
			t.Error("kernel parameters can be written")
		}
		for key := range s.Linux.Sysctl {
			if strings.HasPrefix(key, "net") {
				t.Errorf("sysctl %q", key)
			}
		}
		for _, ns := range s.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				t.Error("a network namespace")
			}
		}
		if s.Linux.CgroupsPath == "/" || strings.Contains(s.Linux.CgroupsPath, "/../") {
			t.Errorf("cgroup path %q", s.Linux.CgroupsPath)
		}
	})
}

// The sandbox's resolv.conf is the agent's, too: a container may read it, whatever its spec says.
func TestResolvConfIsReadOnly(t *testing.T) {
	m, err := convertBind(specs.Mount{
		Destination: "/etc/resolv.conf", Type: "bind", Source: "/run/kata-containers/sandbox/resolv.conf", Options: []string{"rbind", "rw"},
	}, "/run/kata-containers")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rw") {
		t.Errorf("options %v, want ro and not rw", m.Options)
	}
}
