// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package callers

import (
	"regexp"
	"strings"
	"testing"
)

// The trace of a panic names functions and lines, and nothing that they were called with.
func TestCallersShowNoArguments(t *testing.T) {
	t.Parallel()
	got := deep("an argument", 0xdeadbeef)
	if !strings.Contains(got, "internal/callers.deep:") || !regexp.MustCompile(`^(\S+:\d+ )+$`).MatchString(got) {
		t.Errorf("trace %q", got)
	}
}

//go:noinline
func deep(string, int) string { return Names() }
