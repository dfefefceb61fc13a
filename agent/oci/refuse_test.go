// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

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
		"no id mappings":        {func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "user"}} }, "id mappings: there are 0"},
		"time namespace":        {func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "time"}} }, "time namespace"},
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
		"many masked paths":     {func(s *specs.Spec) { s.Linux.MaskedPaths = slices.Repeat([]string{"/x"}, maxPaths+1) }, "at most"},
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
		"tracing": {func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_PTRACE"}}
		}, "CAP_SYS_PTRACE is not offered"},
		"volume as dev": {mounting(specs.Mount{Destination: "/dev", Type: "bind", Source: ok}), "tmpfs is offered there only"},
		"mqueue as dev": {mounting(specs.Mount{Destination: "/x/../dev/", Type: "mqueue"}), "tmpfs is offered there only"},
		"volume as pts": {mounting(specs.Mount{Destination: "/dev/pts", Type: "bind", Source: ok}), "devpts is offered there only"},
		"tmpfs as pts":  {mounting(specs.Mount{Destination: "/dev/./pts", Type: "tmpfs"}), "devpts is offered there only"},
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
