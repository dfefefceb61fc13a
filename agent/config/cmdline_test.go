// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package config

import (
	"slices"
	"strings"
	"testing"
)

// The expectations follow next_arg of the kernel's lib/cmdline.c.
func TestParameters(t *testing.T) {
	t.Parallel()
	for line, want := range map[string][]parameter{
		"":                    nil,
		" \t\n":               nil,
		"a":                   {{name: "a"}},
		"a=":                  {{name: "a", valued: true}},
		"a=b=c d\n":           {{"a", "b=c", true}, {name: "d"}},
		`a="b c" d`:           {{"a", "b c", true}, {name: "d"}},
		`"a=b c" d`:           {{"a", "b c", true}, {name: "d"}},
		`"a="b c"" d`:         {{"a", "b", true}, {name: `c""`}, {name: "d"}},
		`a=b" "c`:             {{"a", `b" "c`, true}},
		`a="b`:                {{"a", "b", true}},
		`a="b c`:              {{"a", "b c", true}},
		`a=""`:                {{"a", "", true}},
		`"a="`:                {{"a", "", true}},
		`"a"`:                 {{name: "a"}},
		`"a"=b`:               {{`a"`, "b", true}},
		`"`:                   {{name: ""}},
		"=a":                  {{name: "=a"}},
		"==a":                 {{"=", "a", true}},
		"a -- b":              {{name: "a"}},
		`a "--" b`:            {{name: "a"}},
		"a --=x b":            {{name: "a"}, {"--", "x", true}, {name: "b"}},
		"a --b c":             {{name: "a"}, {name: "--b"}, {name: "c"}},
		"a\v b\fc\rd":         {{name: "a"}, {name: "b"}, {name: "c"}, {name: "d"}},
		"agent.no_proxy=\xa0": {{"agent.no_proxy", "\xa0", true}},
	} {
		if got := slices.Collect(parameters(line)); !slices.Equal(got, want) {
			t.Errorf("%q: got %+v, want %+v", line, got, want)
		}
	}
}

func FuzzCommandLine(f *testing.F) {
	for _, s := range []string{
		"", "agent.log=debug agent.trace", `"agent.no_proxy=a b" agent.log="info" -- agent.log=trace`,
		"agent.hotplug_timeout=18446744073709551616", "agent.container_pipe_size=-1", "agent.config_file=/x agent.log=info",
		"agent.server_addr=unix://@a agent.https_proxy=http://u:p@h:1/", "agent.x agent.y=1 cgroup_no_v1=all", "agent.log_vport=-2",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		c, warnings, err := Load(Options{CommandLine: line, Open: opens("log_level = 'debug'")})
		check(t, c, warnings, err)
		for p := range parameters(line) {
			if !strings.Contains(line, p.name) || !strings.Contains(line, p.value) {
				t.Errorf("%+v does not stand in %q", p, line)
			}
		}
	})
}

func FuzzFile(f *testing.F) {
	for _, s := range []string{
		"", "log_level = 'debug'\n", "hotplug_timeout = {secs = 1, nanos = 2}", "[hotplug_timeout]\nsecs=1\nnanos=1000000000",
		"cdi_timeout = 9223372036854775807", "container_pipe_size = 2147483648", "debug_console = 1", "unknown = [[1], {a = 1979-05-27}]",
		"mem_agent_enable = true\nlog_vport = -1", "a.b.c = nan", "x = '", "https_proxy = \"http://\\u0000\"",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, warnings, err := Load(Options{File: "f", Open: opens(string(data))})
		check(t, c, warnings, err)
	})
}

// check holds what is true of any settings.
func check(t *testing.T, c *Config, warnings []Warning, err error) {
	t.Helper()
	if (c == nil) == (err == nil) {
		t.Fatalf("settings %v and error %v", c, err)
	}
	if len(warnings) > 3*(maxWarnings+1) {
		t.Errorf("%d warnings", len(warnings))
	}
	for _, w := range warnings {
		if len(w.String()) > 1000 || strings.ContainsAny(w.String(), "\n\x00\x1b") || w.Source == "" || w.Text == "" {
			t.Errorf("warning %q", w)
		}
	}
	if err != nil {
		if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\n\x00\x1b") {
			t.Errorf("error %q", err)
		}
		return
	}
	for _, d := range []int64{int64(c.HotplugTimeout), int64(c.CDITimeout), int64(c.ImagePullTimeout), int64(c.LaunchProcessTimeout), int64(c.CDHTimeout)} {
		if d <= 0 || d > int64(maxTimeout) {
			t.Errorf("a time-out of %d ns", d)
		}
	}
	for _, text := range []string{c.ServerAddr, c.NoProxy, c.HTTPSProxy, c.PolicyFile} {
		if !isText(text) {
			t.Errorf("text %q", text)
		}
	}
	if c.ContainerPipeSize < 0 || !strings.Contains(c.ServerAddr, "://") {
		t.Errorf("settings %+v", c)
	}
}
