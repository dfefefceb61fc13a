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

func podOptions(id string) Options {
	return Options{ID: id, RunDir: runDir, Rootfs: runDir + "/" + id + "/rootfs", IPC: "/proc/1/fd/7", UTS: "/proc/1/fd/8", Hostname: "pod-1"}
}

func TestGolden(t *testing.T) {
	for name, change := range map[string]func(o *Options){
		"container": func(o *Options) { o.PID = "/proc/1/fd/9" },
		"pause":     func(*Options) {},
		"minimal":   func(o *Options) { o.IPC, o.UTS = "", "" },
		"ctr-run":   func(*Options) {},
		"privileged": func(o *Options) {
			o.Privileged = true
			o.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "/usr/share/oci/hooks/poststart/note", Args: []string{"note", "poststart"}}}}
			o.Volumes = []string{runDir + "/sandbox/storage/data"}
		},
		"user-namespace": func(*Options) {},
		"build-host":     func(o *Options) { o.Controllers, o.HugePages = []string{"cpu", "hugetlb"}, []string{"2MB"} },
	} {
		t.Run(name, func(t *testing.T) {
			in, before := readSpec(t, name), readSpec(t, name)
			o := podOptions("c0ffee")
			change(&o)
			result, err := Convert(in, o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, in); diff != "" {
				t.Errorf("the argument was changed:\n%s", diff)
			}
			wantGolden(t, name, result)
		})
	}
	t.Run("exec", func(t *testing.T) {
		init, err := Convert(readSpec(t, "privileged"), Options{ID: "c0ffee", RunDir: runDir, Privileged: true, Volumes: []string{runDir + "/sandbox/storage/data"}})
		if err != nil {
			t.Fatal(err)
		}
		p, err := ExecProcess(readSpec(t, "exec").Process, init.Spec.Process)
		if err != nil {
			t.Fatal(err)
		}
		wantGolden(t, "exec", p)
	})
}

func readSpec(t *testing.T, name string) *specs.Spec {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// wantGolden compares a value with a golden file.
func wantGolden(t *testing.T, name string, value any) {
	t.Helper()
	got, err := json.MarshalIndent(value, "", "  ")
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

// The sandbox's resolv.conf is the agent's, too: a container may read it, whatever its spec says.
func TestResolvConfIsReadOnly(t *testing.T) {
	m, err := convertBind(specs.Mount{
		Destination: "/etc/resolv.conf", Type: "bind", Source: "/run/kata-containers/sandbox/resolv.conf", Options: []string{"rbind", "rw"},
	}, options())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rw") {
		t.Errorf("options %v, want ro and not rw", m.Options)
	}
}
