// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guesttest

import (
	"slices"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/internal/guesttest/plan"
)

// consoleOf returns a console with the events, and lines of the kernel's around them.
func consoleOf(t *testing.T, events ...plan.Event) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("[    0.000000] Linux version 6.12\r\nno line feed after this")
	for _, e := range events {
		data, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(strings.ReplaceAll(string(data), "\n", "\r\n")) // as a terminal has it
	}
	b.WriteString("[    9.000000] reboot: Power down\n")
	return b.String()
}

func TestProblems(t *testing.T) {
	start := plan.Event{Kind: plan.KindStart, Package: "p"}
	end := plan.Event{Kind: plan.KindEnd, Package: "p"}
	out := func(text string) plan.Event { return plan.Event{Kind: plan.KindOutput, Package: "p", Text: text} }
	pass := out("\x16--- PASS: TestA (0.00s)")
	tests := []struct {
		name   string
		events []plan.Event
		want   []string
	}{
		{"passed", []plan.Event{start, pass, end}, nil},
		{"allowed skip", []plan.Event{start, pass, out("\x16--- SKIP: TestMay (0.00s)"), end}, nil},
		{"no result", nil, []string{"its tests did not start"}},
		{"no end", []plan.Event{start, pass}, []string{"its tests did not end"}},
		{"failed", []plan.Event{start, pass, out("\x16--- FAIL: TestB/x (1.00s)"), {Kind: plan.KindEnd, Package: "p", Exit: 1}}, []string{"TestB/x failed"}},
		{"failed with status 0", []plan.Event{start, pass, out("\x16--- FAIL: TestB (1.00s)"), end}, []string{"TestB failed"}},
		{"status only", []plan.Event{start, pass, {Kind: plan.KindEnd, Package: "p", Exit: 2}}, []string{"the test binary ended with status 2"}},
		{"killed", []plan.Event{start, pass, {Kind: plan.KindEnd, Package: "p", Exit: -1}}, []string{"the test binary ended with status -1"}},
		{"skip", []plan.Event{start, pass, out("\x16--- SKIP: TestC (0.00s)"), end}, []string{"TestC skipped itself"}},
		{"nothing ran", []plan.Event{start, out("testing: warning: no tests to run"), end}, []string{"no test passed"}},
		{"a test prints a verdict", []plan.Event{start, out("--- PASS: TestA (0.00s)"), end}, []string{"no test passed"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			events, err := plan.ParseConsole(consoleOf(t, tt.events...))
			if err != nil {
				t.Fatal(err)
			}
			r := collect(events)
			if len(r.errors) > 0 || r.done {
				t.Errorf("errors %q, done %v", r.errors, r.done)
			}
			if got := r.results["p"].problems(Package{Path: "p", MaySkip: []string{"TestMay"}}); !slices.Equal(got, tt.want) {
				t.Errorf("problems %q, want %q", got, tt.want)
			}
		})
	}
}

func TestGuestItself(t *testing.T) {
	events, err := plan.ParseConsole(consoleOf(t, plan.Event{Kind: plan.KindError, Text: "no cgroup"}, plan.Event{Kind: plan.KindOutput}, plan.Event{Kind: plan.KindDone}))
	if err != nil {
		t.Fatal(err)
	}
	r := collect(events)
	if !r.done || !slices.Equal(r.errors, []string{"no cgroup", `event "output" without a package`}) {
		t.Errorf("done %v, errors %q", r.done, r.errors)
	}
}

func TestGarbledEvent(t *testing.T) {
	if _, err := plan.ParseConsole("@guest-test {\"kind\":\"end\",[ 3.0] oops\n"); err == nil || !strings.Contains(err.Error(), "garbled") {
		t.Errorf("error %v", err)
	}
}
