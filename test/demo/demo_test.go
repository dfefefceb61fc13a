// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The README's transcript is one of this demo: it shows every step, in order, and no other.
func TestReadmeShowsTheDemo(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	steps := (&demo{}).steps()
	rest := string(readme)
	for i, s := range steps {
		line := fmt.Sprintf("    %2d/%d %-10s ", i+1, len(steps), s.name)
		at := strings.Index(rest, line)
		if at < 0 {
			t.Fatalf("the transcript in README.md lacks step %q after the ones before", line)
		}
		rest = rest[at+len(line):]
	}
	if strings.Contains(rest, fmt.Sprintf("/%d ", len(steps))) {
		t.Error("the transcript in README.md shows more steps than the demo has")
	}
}
