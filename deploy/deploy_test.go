// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package deploy holds what starts the agent in guest images that are not sealed; its test checks that.
package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const unit = "cloister-agent.service"

// TestUnit: systemd passes over a setting that stands in the wrong section, and so would leave a guest running whose
// agent has ended.
func TestUnit(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	section := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			got[section+key] = value
		}
	}
	for key, want := range map[string]string{
		"[Unit]SuccessAction": "poweroff-force", "[Unit]FailureAction": "poweroff-force", "[Service]Restart": "no",
		"[Service]ExecStart": "/usr/bin/cloister-agent", "[Service]KillMode": "process", "[Install]Alias": "kata-agent.service",
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
}

// TestUnitForSystemd asks systemd itself, where it is installed; TestUnit has checked what matters.
func TestUnitForSystemd(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd is not installed here; TestUnit has checked what matters")
	}
	data, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), unit)
	text := strings.Replace(string(data), "/usr/bin/cloister-agent", "/bin/true", 1)
	if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), analyze, "verify", copied).CombinedOutput()
	if err != nil || strings.Contains(string(out), unit+":") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
