// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guesttest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// listed is what go list says about a package.
type listed struct {
	ImportPath                string
	TestGoFiles, XTestGoFiles []string
}

// Every package that is linked into the agent and has tests must be on the list: a new one cannot be forgotten.
func TestListIsComplete(t *testing.T) {
	root := moduleRoot(t)
	prefix := strings.TrimSpace(goList(t, root, "-m"))
	agent := strings.Fields(goList(t, root, "-deps", "./cmd/cloister-agent"))
	known := map[string]bool{}
	for _, p := range Packages() {
		if known[p.Path] {
			t.Errorf("%s is on the list twice", p.Path)
		}
		known[p.Path] = true
		if (p.Exclude == "") != (p.Why == "") {
			t.Errorf("%s: Exclude and Why go together", p.Path)
		}
	}
	dec := json.NewDecoder(strings.NewReader(goList(t, root, "-json=ImportPath,TestGoFiles,XTestGoFiles", "./...")))
	tested := 0
	for {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		path, ok := strings.CutPrefix(p.ImportPath, prefix+"/")
		if !ok || !slices.Contains(agent, p.ImportPath) || len(p.TestGoFiles)+len(p.XTestGoFiles) == 0 {
			continue
		}
		tested++
		if _, excluded := hostOnly()[path]; excluded == known[path] {
			t.Errorf("%s is part of the agent and has tests: list it in either Packages or hostOnly", path)
		}
	}
	if tested == 0 {
		t.Error("go list names no package of the agent with tests")
	}
}

func goList(t *testing.T, root string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	return string(out)
}
