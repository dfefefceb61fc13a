// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package proc

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// TestRunChild is the command that TestRun runs.
func TestRunChild(t *testing.T) {
	switch os.Getenv("CLOISTER_TEST_RUN_CHILD") {
	case "good":
		_, _ = os.Stdout.WriteString("answer\n")
		os.Exit(0)
	case "bad":
		_, _ = os.Stderr.WriteString("what went wrong\n")
		os.Exit(3)
	case "slow":
		time.Sleep(time.Hour)
	}
}

func TestRun(t *testing.T) {
	r, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	run := func(ctx context.Context, kind string) (string, error) {
		t.Setenv("CLOISTER_TEST_RUN_CHILD", kind)
		return r.Run(ctx, os.Args[0], "-test.run=^TestRunChild$")
	}
	if out, err := run(t.Context(), "good"); err != nil || out != "answer" {
		t.Errorf("good command: %q, %v", out, err)
	}
	if _, err := run(t.Context(), "bad"); err == nil || !strings.Contains(err.Error(), "what went wrong (exit status 3)") {
		t.Errorf("bad command: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := run(ctx, "slow"); err == nil {
		t.Error("a command outlived its context")
	}
	if _, err := r.Run(t.Context(), "/no/such/command"); err == nil {
		t.Error("a command that does not exist has run")
	}
}
