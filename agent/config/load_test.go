// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// opens is a file with this content at every path.
func opens(content string) func(string) (io.ReadCloser, error) {
	return func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
}

// environ looks up in NAME=value texts.
func environ(vars ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, v := range vars {
			if n, value, _ := strings.Cut(v, "="); n == name {
				return value, true
			}
		}
		return "", false
	}
}

// TestDefaults is the golden of the defaults, those of Kata 4.1.
func TestDefaults(t *testing.T) {
	t.Parallel()
	c, warnings, err := Load(Options{})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("got %v and %v", warnings, err)
	}
	const want = "{LogLevel:INFO LogPort:0 DebugConsole:false DebugConsolePort:0 Tracing:false ServerAddr:vsock://-1:1024 " +
		"ContainerPipeSize:0 HotplugTimeout:3s CDITimeout:1m40s ImagePullTimeout:20m0s LaunchProcessTimeout:6s CDHTimeout:50s " +
		"UnifiedCgroupHierarchy:false HTTPSProxy: NoProxy: ImagePolicyFile: ImageRegistryAuth: SignatureVerification:false " +
		"PolicyFile: SecureStorageIntegrity:true VisibleCDIDevices:false}"
	if got := fmt.Sprintf("%+v", *c); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestEverySetting sets each setting in each source that has it, alone, to another value than its default. Each field
// of Config must be reached, and each setting of the code must stand in the table.
func TestEverySetting(t *testing.T) {
	t.Parallel()
	tests := []struct {
		line, file, env string
		want            func(c *Config)
	}{
		{"agent.log=trace", `log_level = "trace"`, "KATA_AGENT_LOG_LEVEL=trace", func(c *Config) { c.LogLevel = slog.LevelDebug - 4 }},
		{"agent.log_vport=1025", "log_vport = 1025", "", func(c *Config) { c.LogPort = 1025 }},
		{"agent.debug_console", "debug_console = true", "", func(c *Config) { c.DebugConsole = true }},
		{"agent.debug_console_vport=1026", "debug_console_vport = 1026", "", func(c *Config) { c.DebugConsolePort = 1026 }},
		{"agent.trace", "tracing = true", "KATA_AGENT_TRACING=true", func(c *Config) { c.Tracing = true }},
		{"agent.trace=2", "", "KATA_AGENT_TRACING=1", func(c *Config) { c.Tracing = true }},
		{"agent.server_addr=unix:///run/a=b", `server_addr = "unix:///run/a=b"`, "KATA_AGENT_SERVER_ADDR=unix:///run/a=b", func(c *Config) { c.ServerAddr = "unix:///run/a=b" }},
		{"agent.container_pipe_size=2097152", "container_pipe_size = 2097152", "", func(c *Config) { c.ContainerPipeSize = 2 << 20 }},
		{"agent.hotplug_timeout=7", "hotplug_timeout = 7", "", func(c *Config) { c.HotplugTimeout = 7 * time.Second }},
		{"", "hotplug_timeout = {secs = 0, nanos = 5}", "", func(c *Config) { c.HotplugTimeout = 5 }},
		{"agent.cdi_timeout=7", "[cdi_timeout]\nsecs = 7\nnanos = 0", "", func(c *Config) { c.CDITimeout = 7 * time.Second }},
		{"agent.image_pull_timeout=7", "image_pull_timeout = {secs = 7}", "", func(c *Config) { c.ImagePullTimeout = 7 * time.Second }},
		{"agent.launch_process_timeout=7", "launch_process_timeout = 7", "", func(c *Config) { c.LaunchProcessTimeout = 7 * time.Second }},
		{"agent.cdh_api_timeout=+7", "cdh_api_timeout = 7", "", func(c *Config) { c.CDHTimeout = 7 * time.Second }},
		{"agent.cdh_api_timeout=31536000", "cdh_api_timeout = 31536000", "", func(c *Config) { c.CDHTimeout = maxTimeout }},
		{"agent.visible_cdi_devices=true", "visible_cdi_devices = true", "", func(c *Config) { c.VisibleCDIDevices = true }},
		{"systemd.unified_cgroup_hierarchy=1", "unified_cgroup_hierarchy = true", "", func(c *Config) { c.UnifiedCgroupHierarchy = true }},
		{"cgroup_no_v1=all systemd.unified_cgroup_hierarchy=0 cgroup_no_v1=cpu", "", "", func(c *Config) { c.UnifiedCgroupHierarchy = true }},
		{"agent.https_proxy=http://p:81", `https_proxy = "http://p:81"`, "", func(c *Config) { c.HTTPSProxy = "http://p:81" }},
		{`agent.no_proxy="a, b"`, `no_proxy = "a, b"`, "", func(c *Config) { c.NoProxy = "a, b" }},
		{"agent.image_policy_file=file:///p.json", `image_policy_file = "file:///p.json"`, "", func(c *Config) { c.ImagePolicyFile = "file:///p.json" }},
		{"agent.image_registry_auth=kbs:///a/b/c", `image_registry_auth = "kbs:///a/b/c"`, "", func(c *Config) { c.ImageRegistryAuth = "kbs:///a/b/c" }},
		{"agent.enable_signature_verification=true", "enable_signature_verification = true", "", func(c *Config) { c.SignatureVerification = true }},
		{"", `policy_file = "/p.rego"`, "KATA_AGENT_POLICY_FILE=/p.rego", func(c *Config) { c.PolicyFile = "/p.rego" }},
		{"agent.secure_storage_integrity=0", "secure_storage_integrity = false", "", func(c *Config) { c.SecureStorageIntegrity = false }},
		// Values that are right and change nothing.
		{"agent.log=debug agent.log=info", `log_level = "info"`, "KATA_AGENT_TRACING=false", func(*Config) {}},
		{"agent.log_vport=0", "https_proxy = ''\nno_proxy = ''\npolicy_file = ''", "KATA_AGENT_POLICY_FILE=", func(*Config) {}},
		{"cgroup_no_v1=cpu quiet agent agentx.y -- agent.log=debug agent.bogus", "passfd_listener_port = 0", "OTHER=1", func(*Config) {}},
	}
	var all strings.Builder
	for _, test := range tests {
		fmt.Fprintln(&all, test.line, "\n"+test.file, "\n"+test.env)
		want := defaults()
		test.want(&want)
		for name, o := range map[string]Options{
			"command line": {CommandLine: test.line}, "file": {File: "f", Open: opens(test.file)}, "environment": {Env: environ(test.env)},
		} {
			if o.CommandLine == "" && name == "command line" || test.file == "" && name == "file" || test.env == "" && name == "environment" {
				continue
			}
			c, warnings, err := Load(o)
			if err != nil || len(warnings) > 0 {
				t.Errorf("%s of %+v: %v, %v", name, test, warnings, err)
				continue
			}
			if d := cmp.Diff(want, *c); d != "" {
				t.Errorf("%s of %q %q %q: %s", name, test.line, test.file, test.env, d)
			}
		}
	}
	for _, s := range settings(&Config{}, new(bool)) {
		for _, name := range []string{s.param, s.key, s.env} {
			if s.value != nil && !strings.Contains(all.String(), name) {
				t.Errorf("no test sets %s", name)
			}
		}
	}
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	const line, file, named = "agent.log=error agent.log_vport=1", "log_level = 'debug'\nlog_vport = 2", " agent.config_file=/a agent.config_file=/b"
	env := environ("KATA_AGENT_LOG_LEVEL=trace", "KATA_AGENT_POLICY_FILE=/p")
	for name, test := range map[string]struct {
		o        Options
		opened   string
		level    slog.Level
		port     uint32
		policy   string
		warnings []string
	}{
		"line":              {o: Options{CommandLine: line}, level: slog.LevelError, port: 1},
		"line, environment": {o: Options{CommandLine: line, Env: env}, level: levelTrace, port: 1, policy: "/p"},
		"-c, line":          {o: Options{CommandLine: line + named, File: "/c"}, opened: "/c", level: slog.LevelDebug, port: 2},
		"-c, environment":   {o: Options{CommandLine: "agent.log=bad", File: "/c", Env: env}, opened: "/c", level: levelTrace, port: 2, policy: "/p"},
		"named":             {o: Options{CommandLine: named}, opened: "/a", level: slog.LevelDebug, port: 2},
		"named, line, environment": {
			o: Options{CommandLine: line + named + " agent.log=bad", Env: env}, opened: "/a", level: slog.LevelDebug, port: 2,
			warnings: []string{"agent.log", "agent.log_vport", "KATA_AGENT_LOG_LEVEL", "KATA_AGENT_POLICY_FILE"},
		},
		"named behind --": {o: Options{CommandLine: line + " -- " + named}, level: slog.LevelError, port: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opened := ""
			test.o.Open = func(path string) (io.ReadCloser, error) {
				opened += path
				return opens(file)(path)
			}
			c, warnings, err := Load(test.o)
			if err != nil {
				t.Fatal(err)
			}
			if opened != test.opened || c.LogLevel != test.level || c.LogPort != test.port || c.PolicyFile != test.policy {
				t.Errorf("opened %q, got %+v", opened, c)
			}
			var names []string
			for _, w := range warnings {
				names = append(names, w.Setting)
			}
			if !slices.Equal(names, test.warnings) {
				t.Errorf("got warnings %v, want %v", names, test.warnings)
			}
		})
	}
}

// TestWarnings wants exactly these warnings, and the default (or what follows the colon) of what they are about.
func TestWarnings(t *testing.T) {
	t.Parallel()
	tracing := environ("KATA_AGENT_TRACING=maybe")
	long := strings.Repeat("x", 1000)
	for _, test := range []struct {
		o    Options
		want []string
	}{
		{Options{CommandLine: "agent.trace=yes"}, []string{`agent.trace: it is "yes": it is not true, false or a number, so it is taken for false`}},
		{Options{CommandLine: "agent.trace=", Env: environ("KATA_AGENT_LOG_LEVEL=loud")}, []string{`agent.trace: it is ""`, `KATA_AGENT_LOG_LEVEL: it is "loud", so it has no effect: want fatal`}},
		{Options{CommandLine: "agent.trace", Env: tracing}, []string{`KATA_AGENT_TRACING: it is "maybe"`}},
		{Options{CommandLine: "agent.debug_console=1 agent.debug_console=true"}, []string{`agent.debug_console: it is "1": it is turned on by its name`, `agent.debug_console: it is "true"`}},
		{Options{CommandLine: "agent.log quiet agent.log agent.secure_storage_integrity agent.config_file"}, []string{"agent.log: it needs a value", "agent.secure_storage_integrity: it needs", "agent.config_file: it needs"}},
		{Options{CommandLine: "agent.hotplug_timeout=0 agent.log_vport=-1"}, []string{`agent.hotplug_timeout: it is "0": no time-out may be 0`, `agent.log_vport: it is "-1": it is not a port`}},
		{Options{CommandLine: "agent.nonsense agent.nonsense=1 agent." + long}, []string{"agent.nonsense: the agent does not know it", "agent." + long[:94] + "…: the agent"}},
		{Options{CommandLine: "agent.passfd_listener_port=1 agent.devmode"}, []string{"agent.passfd_listener_port: it is accepted and has no effect: standard streams", "agent.devmode: "}},
		{Options{Env: environ("KATA_ATTESTER_VARIANT=nvidia")}, []string{"KATA_ATTESTER_VARIANT: it is accepted and has no effect: secrets"}},
		{
			Options{File: "f", Open: opens("b = 1\na = {c = 1}\nA.x = []\ndev_mode = 'x'\nLOG_LEVEL = 'debug'\nhotplug_timeout = {secs = 0, nanos = 0}\nlog_vport = -1")},
			[]string{"A: the agent does not know", "LOG_LEVEL: the agent does not know", "a: the agent", "b: the agent", "dev_mode: it is accepted", `hotplug_timeout: it is "map[nanos:0 secs:0]": no time-out`, `log_vport: it is "-1"`},
		},
	} {
		c, warnings, err := Load(test.o)
		if err != nil {
			t.Errorf("%+v: %v", test.o, err)
			continue
		}
		if d := cmp.Diff(defaults(), *c); d != "" {
			t.Errorf("%+v: %s", test.o, d)
		}
		for i, w := range warnings {
			if i >= len(test.want) || !strings.HasPrefix(w.Setting+": "+w.Text, test.want[i]) {
				t.Errorf("warning %d of %q: %s", i, test.o.CommandLine, w)
			}
		}
		if len(warnings) != len(test.want) {
			t.Errorf("%q: got %d warnings, want %d", test.o.CommandLine, len(warnings), len(test.want))
		}
	}
}

func TestTimeoutIsCut(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{
		{CommandLine: "agent.cdi_timeout=18446744073709551615"},
		{File: "f", Open: opens("cdi_timeout = {secs = 31536000, nanos = 1}")},
	} {
		c, warnings, err := Load(o)
		if err != nil || len(warnings) != 1 || c.CDITimeout != maxTimeout {
			t.Errorf("got %+v, %v, %v", c, warnings, err)
		}
	}
}

// TestEachIgnoredSettingWarnsOnce sets every setting that has no meaning, in every source.
func TestEachIgnoredSettingWarnsOnce(t *testing.T) {
	t.Parallel()
	for _, s := range ignoredSettings() {
		for source, o := range map[string]Options{
			s.param: {CommandLine: s.param + "=1 " + s.param + "=2"}, s.key: {File: "f", Open: opens(s.key + " = 1")}, s.env: {Env: environ(s.env + "=1")},
		} {
			if source == "" {
				continue
			}
			c, warnings, err := Load(o)
			if err != nil || len(warnings) != 1 || warnings[0].Setting != source || !strings.HasSuffix(warnings[0].Text, s.instead) {
				t.Errorf("%s: got %v, %v", source, warnings, err)
			} else if d := cmp.Diff(defaults(), *c); d != "" {
				t.Errorf("%s changes the settings: %s", source, d)
			}
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	secret := "http://user:hunter2@"
	for _, test := range []struct{ line, file, env, want string }{
		{line: "agent.log=loud", want: `kernel command line: agent.log is "loud", want fatal, panic,`},
		{line: "agent.log=", want: `agent.log is "", want`},
		{line: "agent.log=Debug", want: `agent.log is "Debug"`},
		{file: "log_level = 3", want: `configuration file: log_level is "3", want fatal`},
		{line: "agent.log_vport=x", want: `agent.log_vport is "x", want a port`},
		{line: "agent.log_vport=2147483648", want: "want a port"},
		{file: "debug_console_vport = 2147483648", want: "debug_console_vport"},
		{file: "debug_console = 1", want: `debug_console is "1", want the name alone`},
		{file: "tracing = 'true'", want: `tracing is "true", want true`},
		{line: "agent.server_addr=", want: `agent.server_addr is "", want vsock`},
		{line: "agent.server_addr=tcp://1.2.3.4", want: "want vsock://CID:PORT"},
		{file: "server_addr = ''", want: "want vsock://CID:PORT"},
		{env: "KATA_AGENT_SERVER_ADDR=", want: "environment: KATA_AGENT_SERVER_ADDR"},
		{env: "KATA_AGENT_POLICY_FILE=a\x00b", want: "KATA_AGENT_POLICY_FILE"},
		{line: "agent.container_pipe_size=-1", want: `agent.container_pipe_size is "-1", want a number of bytes, 0 to 2147483647`},
		{line: "agent.container_pipe_size=2147483648", want: "want a number of bytes"},
		{file: "container_pipe_size = -1", want: "want a number of bytes"},
		{file: "container_pipe_size = 1.5", want: "want a number of bytes"},
		{line: "agent.hotplug_timeout=-1", want: `agent.hotplug_timeout is "-1", want a number of whole seconds`},
		{line: "agent.hotplug_timeout=3s", want: "want a number of whole seconds"},
		{line: "agent.cdi_timeout=18446744073709551616", want: "want a number of whole seconds"},
		{file: "cdi_timeout = '3'", want: "want a number of whole seconds"},
		{file: "cdi_timeout = 3.5", want: "want a number of whole seconds"},
		{file: "cdi_timeout = -3", want: "want a number of whole seconds"},
		{file: "cdi_timeout = {nanos = 1}", want: "want a number of whole seconds"},
		{file: "cdi_timeout = {secs = 1, nanos = 1000000000}", want: "want a number of whole seconds"},
		{file: "cdi_timeout = {secs = 1, millis = 1}", want: "want a number of whole seconds"},
		{line: "agent.no_proxy=", want: "agent.no_proxy"},
		{line: "agent.no_proxy=\xff", want: "want printable text"},
		{file: `no_proxy = "a\nb"`, want: "want printable text"},
		{file: "no_proxy = '" + strings.Repeat("a", maxText+1) + "'", want: "want printable text"},
		{line: "agent.https_proxy=", want: "want the URL of a proxy"},
		{line: "agent.https_proxy=" + secret + "%zz", want: "want the URL of a proxy"},
		{file: "https_proxy = 'ftp://user:hunter2@h'", want: "want the URL of a proxy"},
		{line: "agent.secure_storage_integrity=yes", want: `agent.secure_storage_integrity is "yes", want true`},
		{line: "agent.config_file=", want: "agent.config_file"},
		{line: "agent.log=" + strings.Repeat("y", 10000), want: strings.Repeat("y", maxShown) + `…"`},
		{line: strings.Repeat(" ", MaxCommandLine+1), want: "longer than 65536 bytes"},
		{file: "a = \nb = 1", want: `configuration file "f": line 1: `},
		{file: "a = 1\na = 2", want: `configuration file "f": `},
		{file: "a = 99999999999999999999", want: `configuration file "f": `},
		{file: strings.Repeat("#\n", maxFile/2) + "#", want: "it is larger than 1048576 bytes"},
		{file: strings.Repeat("[[a]]\n", maxMarks/2+1), want: "it has more than 8192 equals signs"},
	} {
		o := Options{CommandLine: test.line, Env: environ(test.env)}
		if test.file != "" {
			o.File, o.Open = "f", opens(test.file)
		}
		c, _, err := Load(o)
		if err == nil {
			t.Errorf("%.50q %.50q %q: got %+v, want an error", test.line, test.file, test.env, c)
		} else if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") || len(err.Error()) > 500 {
			t.Errorf("%.50q %.50q %q: got %q, want it to hold %q", test.line, test.file, test.env, err, test.want)
		}
	}
}

func TestWarningsEnd(t *testing.T) {
	t.Parallel()
	var line, file strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&line, "agent.x%d ", i)
		fmt.Fprintf(&file, "x%d = 1\n", i)
	}
	for _, o := range []Options{{CommandLine: line.String()}, {File: "f", Open: opens(file.String())}} {
		_, warnings, err := Load(o)
		if err != nil || len(warnings) != maxWarnings+1 || warnings[maxWarnings].Setting != "more settings" {
			t.Errorf("got %d warnings and %v", len(warnings), err)
		}
	}
}

func TestFilesOfThisMachine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good, fifo := filepath.Join(dir, "good.toml"), filepath.Join(dir, "fifo")
	if err := os.WriteFile(good, []byte("log_vport = 5"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	c, _, err := Load(Options{CommandLine: "agent.config_file=" + good})
	if err != nil || c.LogPort != 5 {
		t.Errorf("got %+v and %v", c, err)
	}
	for _, path := range []string{fifo, dir, "/dev/zero"} {
		if _, _, err := Load(Options{File: path}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: got %v", path, err)
		}
	}
	missing := filepath.Join(dir, "missing")
	if _, _, err := Load(Options{File: missing}); !errors.Is(err, os.ErrNotExist) || strings.Count(err.Error(), missing) != 1 {
		t.Errorf("a missing file: got %v", err)
	}
}

// What decides on images counts wherever it stands, and is never passed over: without it more images would be used.
func TestImageParametersAlwaysCount(t *testing.T) {
	t.Parallel()
	const line = "agent.image_policy_file=file:///p agent.enable_signature_verification=1 agent.image_registry_auth=file:///a"
	for name, o := range map[string]Options{
		"line":       {CommandLine: line},
		"file":       {CommandLine: line, File: "/c"},
		"named file": {CommandLine: line + " agent.config_file=/c"},
	} {
		o.Open = opens("log_level = 'debug'")
		c, warnings, err := Load(o)
		if err != nil || len(warnings) != 0 || c.ImagePolicyFile != "file:///p" || c.ImageRegistryAuth != "file:///a" || !c.SignatureVerification {
			t.Errorf("%s: %+v, %v, %v", name, c, warnings, err)
		}
	}
	c, _, err := Load(Options{CommandLine: line, File: "/c", Open: opens("image_policy_file = 'file:///q'")})
	if err != nil || c.ImagePolicyFile != "file:///q" {
		t.Errorf("a file that says otherwise: %+v, %v", c, err)
	}
	for _, bad := range []string{
		"agent.image_policy_file", "agent.image_policy_file=", "agent.image_registry_auth=", "agent.enable_signature_verification",
		"agent.enable_signature_verification=yes", "agent.enable_signature_verification=",
	} {
		for _, file := range []string{"", "/c"} {
			if c, _, err := Load(Options{CommandLine: bad, File: file, Open: opens("")}); err == nil {
				t.Errorf("%s is passed over: %+v", bad, c)
			}
		}
	}
}
