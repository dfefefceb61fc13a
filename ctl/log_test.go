// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"bytes"
	"strings"
	"testing"
)

func TestCopyLog(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"msg":"container started","level":"INFO","ts":"2026-01-02T03:04:05Z","pid":"1","name":"kata-agent","source":"agent","version":"1","subsystem":"root","container":"c1","why":"a b"}`: "2026-01-02T03:04:05Z INFO container started container=c1 why=\"a b\"",
		`{"msg":"m","level":"WARN","ts":"t","subsystem":"logport","dropped":"5","empty":""}`:                                                                                                  `t WARN m dropped=5 empty="" subsystem=logport`,
		"{\"msg\":\"\\u001b[2J\\r\",\"k\":\"\\u0007\",\"\\n\":\"x\"}":                                                                                                                         `      \x1b[2J\r \n=x k=\a`,
		"no JSON \x1b[0m": `no JSON \x1b[0m`,
		`{"pid":1}`:       `{"pid":1}`,
	} {
		var people, raw bytes.Buffer
		if err := CopyLog(&people, strings.NewReader(in+"\n"), false); err != nil || people.String() != want+"\n" {
			t.Errorf("%s: got %q, %v; want %q", in, &people, err, want)
		}
		if err := CopyLog(&raw, strings.NewReader(in), true); err != nil || raw.String() != in+"\n" {
			t.Errorf("as JSON: %q, %v", &raw, err)
		}
	}
	if err := CopyLog(&bytes.Buffer{}, strings.NewReader(strings.Repeat("x", maxLogLine+1)), true); err == nil {
		t.Error("a line without end was taken")
	}
}

// FuzzFormatLogLine: no line of a guest gets a control character to the terminal.
func FuzzFormatLogLine(f *testing.F) {
	for _, s := range []string{`{"msg":"m","level":"INFO"}`, `{"a":"\u001b","\u0000":"="}`, "\x1b[0m", "\xff", `{"ts":"\u202e"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if out := formatLogLine(line); printable(out) != out {
			t.Errorf("%q became %q", line, out)
		}
	})
}
