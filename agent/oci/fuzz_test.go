// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Whatever the host sends, the result must hold nothing that Convert promises to leave out, unless the guest's own
// options allow it.
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
		f.Add(data, false)
		f.Add(data, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, privileged bool) {
		var in specs.Spec
		if json.Unmarshal(data, &in) != nil {
			return
		}
		o := options()
		o.Privileged = privileged
		result, err := Convert(&in, o)
		if err != nil {
			return
		}
		s := result.Spec
		if s.Hooks != nil || s.Annotations != nil || s.Hostname != "" || s.Root.Path != o.Rootfs {
			t.Error("hooks, annotations, a host name or a root of the host")
		}
		for i, m := range s.Mounts {
			fuzzMount(t, m, privileged)
			bound := slices.ContainsFunc(result.Binds, func(b Bind) bool { return b.Mount == i && b.Source == m.Source })
			if bound != (m.Type == "bind" && strings.HasPrefix(m.Source, runDir+"/shared/")) {
				t.Errorf("mount %d, %q: in Binds: %t", i, m.Source, bound)
			}
		}
		if !privileged {
			fuzzUnprivileged(t, s)
		}
		for key := range s.Linux.Sysctl {
			if strings.HasPrefix(key, "net") {
				t.Errorf("sysctl %q", key)
			}
		}
		for _, ns := range s.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace || ns.Path != "" && ns.Path != o.IPC && ns.Path != o.UTS {
				t.Errorf("%s namespace %q", ns.Type, ns.Path)
			}
		}
		if s.Linux.CgroupsPath == "/" || strings.Contains(s.Linux.CgroupsPath, "/../") {
			t.Errorf("cgroup path %q", s.Linux.CgroupsPath)
		}
		exec, err := ExecProcess(in.Process, s.Process)
		if err == nil && !privileged && slices.ContainsFunc(refused, func(c string) bool { return has(exec.Capabilities, c) }) {
			t.Error("a further process has a refused capability")
		}
	})
}

func has(c *specs.LinuxCapabilities, name string) bool {
	return c != nil && slices.Contains(slices.Concat(c.Bounding, c.Effective, c.Inheritable, c.Permitted, c.Ambient), name)
}

func fuzzMount(t *testing.T, m specs.Mount, privileged bool) {
	t.Helper()
	if m.Type != "bind" {
		if m.Source != m.Type || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
			t.Errorf("mount of type %q: source %q, options %q", m.Type, m.Source, m.Options)
		}
		return
	}
	if path.Clean(m.Source) != m.Source {
		t.Errorf("bind mount of %q", m.Source)
	}
	ours := strings.HasPrefix(m.Source, runDir+"/shared/containers/") || m.Source == runDir+"/sandbox/shm" || m.Source == runDir+"/sandbox/resolv.conf"
	sys := m.Source == "/sys" && m.Destination == "/sys" && slices.Contains(m.Options, "ro")
	if !privileged && !ours && !sys {
		t.Errorf("bind mount of %q", m.Source)
	}
	if !privileged && (slices.Contains(m.Options, "rshared") || slices.Contains(m.Options, "shared")) {
		t.Errorf("bind mount of %q is shared", m.Source)
	}
}

// fuzzUnprivileged checks what holds only where nothing is privileged.
func fuzzUnprivileged(t *testing.T, s *specs.Spec) {
	t.Helper()
	for _, c := range refused {
		if has(s.Process.Capabilities, c) {
			t.Errorf("capability %s", c)
		}
	}
	if len(s.Linux.Devices) > 0 || len(s.Linux.Resources.Devices) != len(deviceRules()) {
		t.Error("devices beyond the default ones")
	}
	if !slices.Contains(s.Linux.ReadonlyPaths, "/proc/sys") || !slices.Contains(s.Linux.MaskedPaths, "/proc/kcore") {
		t.Error("the guest itself can be seen or changed")
	}
	for _, m := range append(slices.Clone(s.Linux.UIDMappings), s.Linux.GIDMappings...) {
		if m.HostID == 0 {
			t.Error("root of the guest is mapped")
		}
	}
	if s.Linux.RootfsPropagation != "" {
		t.Errorf("propagation %q", s.Linux.RootfsPropagation)
	}
}
