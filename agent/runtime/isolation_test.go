// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
)

// wantProbe runs a container with the program probe and compares some of what that tells.
func (p *pod) wantProbe(t *testing.T, c agent.ContainerConfig, want map[string]string) map[string]string {
	t.Helper()
	p.run(t, c)
	told := parseTold(p.output(t, c.ID, ""))
	for key, value := range want {
		if told[key] != value {
			t.Errorf("%s: %s is %q, want %q", c.ID, key, told[key], value)
		}
	}
	if err := p.RemoveContainer(t.Context(), c.ID, 0); err != nil {
		t.Error(err)
	}
	return told
}

// Everything that a spec can ask for is seen from inside.
func TestIsolationOverCrun(t *testing.T) {
	p := newPod(t)
	c := inProgram("c1", "probe")
	some := []string{"CAP_CHOWN", "CAP_MKNOD"}
	c.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: some, Effective: some, Permitted: some}
	c.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Soft: 1000, Hard: 2000}}
	c.Spec.Process.NoNewPrivileges = true
	c.Spec.Process.OOMScoreAdj = new(500)
	c.Spec.Root = &specs.Root{Readonly: true}
	c.Spec.Linux = &specs.Linux{
		Sysctl: map[string]string{"kernel.shmmni": "4001", "net.ipv4.ping_group_range": "5 7"},
		Seccomp: &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow,
			Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: new(uint(77))}},
		},
	}
	told := p.wantProbe(t, c, map[string]string{
		"mkdir": "77", "link": "30", "sys": "30", // EROFS
		"CapBnd": "0000000008000001", "CapEff": "0000000008000001", "CapPrm": "0000000008000001", "CapAmb": "0000000000000000",
		"cpu": "1000 2000", "NoNewPrivs": "1", "Seccomp": "2", "oom": "500", "shmmni": "4001", "ping": "5 7", "null": "0",
		"mknod": "0", "kmsg": "1", "cdi": "2", // a node can be made, but not used
	})
	if strings.Contains(told["kcore"], "ELF") {
		t.Error("/proc/kcore is not masked")
	}
	p.wantProbe(t, inProgram("c2", "probe"), map[string]string{
		"mkdir": "0", "link": "0", "sys": "30", "CapEff": "0000000000000000", "NoNewPrivs": "0", "Seccomp": "0", "mknod": "1",
	})
}

// A user namespace: root inside, nobody outside.
func TestUserNamespaceOverCrun(t *testing.T) {
	p := newPod(t)
	c := inProgram("c1", "probe")
	mappings := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	c.Spec.Linux = &specs.Linux{
		Namespaces: []specs.LinuxNamespace{{Type: specs.UserNamespace}}, UIDMappings: mappings, GIDMappings: mappings,
	}
	p.wantProbe(t, c, map[string]string{"uid_map": "0 100000 65536", "Uid": "0 0 0 0", "mknod": "1", "mkdir": "13"})
}

func TestPrivilegedOverCrun(t *testing.T) {
	p := newPodWith(t, func(_ *pod, c *agent.Config) { c.Privileged = true })
	c := inProgram("c1", "probe")
	all := withinBounds(t, []string{"CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SYSLOG", "CAP_DAC_READ_SEARCH"})
	c.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	c.Spec.Linux = &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}}
	p.wantProbe(t, c, map[string]string{"mknod": "0", "kmsg": "0", "sys": "0"})
	c = inProgram("c2", "probe") // privileged containers are allowed, and this is none
	some := []string{"CAP_MKNOD"}
	c.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: some, Effective: some, Permitted: some}
	c.Spec.Linux = &specs.Linux{MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"}}
	p.wantProbe(t, c, map[string]string{"mknod": "0", "kmsg": "1", "sys": "30"}) // EPERM by the device rules
}

// A device that an annotation names, by its CDI spec in the guest.
func TestCDIOverCrun(t *testing.T) {
	dir := t.TempDir()
	spec := `{"cdiVersion":"0.6.0","kind":"vendor.example/dev","devices":[{"name":"one","containerEdits":{"deviceNodes":[
		{"path":"/dev/cdi-null","type":"c","major":1,"minor":3,"permissions":"rw"}]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "vendor.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPodWith(t, func(_ *pod, c *agent.Config) { c.Devices = cdiDevices(dir) })
	c := inProgram("c1", "probe")
	c.Spec.Annotations = map[string]string{"cdi.k8s.io/vendor": "vendor.example/dev=one"}
	p.wantProbe(t, c, map[string]string{"cdi": "0"})
	p.wantProbe(t, inProgram("c2", "probe"), map[string]string{"cdi": "2"})
	c.ID, c.Spec.Annotations = "c3", map[string]string{"cdi.k8s.io/vendor": "vendor.example/dev=two"}
	if err := p.CreateContainer(t.Context(), c); err == nil {
		t.Error("a container without the device that it asked for was created")
	}
}

// The guest's hooks run outside of the container, each at its time.
func TestHooksOverCrun(t *testing.T) {
	told := filepath.Join(t.TempDir(), "told")
	hook := func(name string) []specs.Hook {
		return []specs.Hook{{
			Path: os.Getenv(busyboxEnv), Args: []string{"busybox", "sh", "-c", fmt.Sprintf("cat > /dev/null; echo %s >> %s", name, told)},
		}}
	}
	p := newPodWith(t, func(_ *pod, c *agent.Config) {
		c.Hooks = func(dir string) (*specs.Hooks, error) {
			if dir != "/hooks" {
				t.Errorf("hooks are looked for in %s", dir)
			}
			return &specs.Hooks{Prestart: hook("prestart"), Poststart: hook("poststart"), Poststop: hook("poststop")}, nil //nolint:staticcheck // SA1019: Kata has it
		}
	})
	want := func(text string) {
		t.Helper()
		if data, err := os.ReadFile(told); err != nil || string(data) != text {
			t.Errorf("hooks say %q, %v; want %q", data, err, text)
		}
	}
	ctx := t.Context()
	if err := p.CreateContainer(ctx, busybox("c1", "exec sleep 1000")); err != nil {
		t.Fatal(err)
	}
	want("prestart\n")
	if err := p.StartContainer(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	want("prestart\npoststart\n")
	if err := p.RemoveContainer(ctx, "c1", 0); err != nil {
		t.Fatal(err)
	}
	want("prestart\npoststart\npoststop\n")
}

// What containers mount of the guest's own file systems leaves those as they are: a read-only cgroup mount in a container,
// which the container engine asks for, is of the same file system as the agent's.
func TestContainerMountsLeaveTheGuestAlone(t *testing.T) {
	p := newPod(t)
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	c := busybox("c1", "mount | grep cgroup; exec mkdir /sys/fs/cgroup/x")
	ro := []string{"nosuid", "noexec", "nodev", "relatime", "ro"}
	c.Spec.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		{Destination: "/sys", Type: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Options: ro},
	}
	c.Spec.Process.Env = []string{"PATH=/"}
	p.run(t, c)
	if status, err := p.Wait(t.Context(), "c1", ""); err != nil || status == 0 {
		t.Errorf("a group was made in a read-only hierarchy: %d, %v", status, err)
	}
	if err := p.RemoveContainer(t.Context(), "c1", 0); err != nil {
		t.Error(err)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Errorf("mounts before:\n%s\nafter:\n%s", before, after)
	}
}
