// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/image/sign"
)

var update = flag.Bool("update", false, "rewrite testdata/deps.txt")

// The agent holds keys and serves a hostile host: what it links is a decision, never an accident. Build-host code in
// it would be a defect by itself. testdata/deps.txt lists the packages of this project and the modules of others; a
// change of it is reviewed like code (go test ./cmd/cloister-agent -update).
func TestLinkedCodeIsOnTheAllowList(t *testing.T) {
	const file = "testdata/deps.txt"
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags="+sign.BuildTag,
		"-f", `{{if .Module}}{{if .Module.Main}}{{.ImportPath}}{{else}}module {{.Module.Path}}{{end}}{{end}}`, ".")
	cmd.Env = append(os.Environ(), "GOARCH=s390x", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	got := strings.Fields(strings.ReplaceAll(string(out), "module ", "module:"))
	slices.Sort(got)
	got = slices.Compact(got)
	if *update {
		if err := os.WriteFile(file, []byte(strings.Join(got, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(data))
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("the agent links %s, which %s does not allow", g, file)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%s allows %s, which the agent does not link any more", file, w)
		}
	}
	for _, g := range got {
		for _, host := range []string{"/guestimage", "/initramfs", "/se", "/internal/testbed", "/internal/qemu", "/internal/debian", "/client", "/ctl", "/test/"} {
			if rest, ours := strings.CutPrefix(g, "github.com/cloister-cc/cloister"); ours && strings.HasPrefix(rest, host) && rest != "/initramfs/layout" {
				t.Errorf("the agent links build-host code: %s", g)
			}
		}
	}
}
