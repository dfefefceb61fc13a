// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

func TestSetupAndRunRefuse(t *testing.T) {
	empty := t.TempDir()
	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"architecture":      {[]string{"setup", "--arch", "riscv64"}, exitUsage, "--arch is s390x, amd64 or all"},
		"setup's arguments": {[]string{"setup", "s390x"}, exitUsage, "s390x"},
		"no guest":          {[]string{"run"}, exitUsage, "arg(s)"},
		"no guest.json":     {[]string{"run", empty}, exitFailure, "guest.json"},
		"console file":      {[]string{"run", empty, "--console", filepath.Join(empty, "no", "folder")}, exitFailure, "console file"},
	} {
		t.Run(name, func(t *testing.T) {
			root := newRootCommand()
			var out bytes.Buffer
			root.SetOut(&out)
			root.SetErr(&out)
			root.SetArgs(tt.args)
			err := root.ExecuteContext(t.Context())
			if err == nil || exitCode(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v (exit %d), want %q (exit %d)", err, exitCode(err), tt.want, tt.code)
			}
		})
	}
}
