// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package plan is what the build host and the test guest's PID 1 tell each other: the plan, a JSON file in the
// initramfs, and events, one line of JSON each on the guest's console. It imports nothing of this module.
package plan

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Paths in the test guest.
const (
	// Path is where the plan lies.
	Path = "/plan.json"
	// ModulesDir holds the kernel modules.
	ModulesDir = "/modules"
)

// eventPrefix starts the lines that are events; everything else on the console is the kernel's.
const eventPrefix = "@guest-test "

// Plan is what the test guest does.
type Plan struct {
	// Modules are loaded in this order.
	Modules []Module `json:"modules"`
	// Env is the environment of each test, NAME=VALUE.
	Env []string `json:"env"`
	// Tests are run one after the other.
	Tests []Test `json:"tests"`
}

// Module is a kernel module below ModulesDir.
type Module struct {
	File string `json:"file"`
	// Optional modules may fail with ENODEV.
	Optional bool `json:"optional,omitempty"`
}

// Test is one test binary.
type Test struct {
	// Package names it in events.
	Package string `json:"package"`
	// Binary and Dir are absolute paths in the guest; Dir is the working folder.
	Binary string `json:"binary"`
	Dir    string `json:"dir"`
	// Args are the binary's arguments.
	Args []string `json:"args"`
}

// Kinds of events.
const (
	// KindStart comes before a test binary is started.
	KindStart = "start"
	// KindOutput carries one line that a test binary wrote.
	KindOutput = "output"
	// KindEnd comes when a test binary has ended.
	KindEnd = "end"
	// KindError is a failure of the guest itself.
	KindError = "error"
	// KindDone is the last event of a guest that has run its whole plan.
	KindDone = "done"
)

// Event is one line on the console.
type Event struct {
	Kind    string `json:"kind"`
	Package string `json:"package,omitempty"`
	// Text is the line of KindOutput, or what went wrong.
	Text string `json:"text,omitempty"`
	// Exit is the exit status of KindEnd; -1 means ended by a signal.
	Exit int `json:"exit,omitempty"`
	// Seconds is how long the test binary of KindEnd ran.
	Seconds float64 `json:"seconds,omitempty"`
}

// Encode returns the event as a whole line.
func (e Event) Encode() ([]byte, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode event: %w", err)
	}
	// The leading line feed parts the event from a line of the kernel's that has not ended.
	return append([]byte("\n"+eventPrefix), append(data, '\n')...), nil
}

// ParseConsole returns the events among the lines of a console. Lines that are no events are left out.
func ParseConsole(console string) ([]Event, error) {
	var events []Event
	for line := range strings.Lines(console) {
		text, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), eventPrefix)
		if !ok {
			continue
		}
		var e Event
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			return events, fmt.Errorf("garbled event on the console: %q: %w", text, err)
		}
		events = append(events, e)
	}
	return events, nil
}
