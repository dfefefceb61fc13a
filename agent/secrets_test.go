// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/agent"
)

// openTest opens "sealed.VALUE" to VALUE, but neither "sealed.bad" nor without a zero byte "sealed.zero".
func openTest(_ context.Context, text string) (string, error) {
	switch value := strings.TrimPrefix(text, "sealed."); value {
	case "bad":
		return "", errors.New("no such signature")
	case "zero":
		return "a\x00b", nil
	default:
		return value, nil
	}
}

func TestSealedEnvironment(t *testing.T) {
	b := runningWith(t, func(c *agent.Config) { c.OpenSecret = openTest })
	c := config("c1", "echo $TOKEN $PLAIN; sleep 100")
	c.Spec.Process.Env = []string{"PATH=/bin:/usr/bin", "TOKEN=sealed.token", "PLAIN=not.sealed."}
	if err := b.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := b.StartContainer(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	for name, env := range map[string][]string{
		"inherited": nil,
		"own":       {"PATH=/bin:/usr/bin", "TOKEN=sealed.token", "PLAIN=not.sealed."},
	} {
		p := shell("echo $TOKEN $PLAIN")
		p.Env = env
		if err := b.Exec(t.Context(), "c1", name, p); err != nil {
			t.Fatal(err)
		}
		if out := b.stdout(t, "c1", name); out != "token not.sealed.\n" {
			t.Errorf("%s environment: %q", name, out)
		}
	}
	if out, err := b.ReadStdout(t.Context(), "c1", "", 100); err != nil || string(out) != "token not.sealed.\n" {
		t.Errorf("the container printed %q, %v", out, err)
	}
}

func TestSealedEnvironmentRefused(t *testing.T) {
	b := runningWith(t, func(c *agent.Config) { c.OpenSecret = openTest })
	b.start(t, "c1", "sleep 100")
	for value, want := range map[string]string{"sealed.bad": "no such signature", "sealed.zero": "zero byte"} {
		c := config("c2", "true")
		c.Spec.Process.Env = []string{"TOKEN=" + value}
		p := shell("true")
		p.Env = c.Spec.Process.Env
		for what, err := range map[string]error{
			"container": b.CreateContainer(t.Context(), c),
			"exec":      b.Exec(t.Context(), "c1", "e1", p),
		} {
			wantErr(t, err, agent.ErrInvalidArgument)
			if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "TOKEN") {
				t.Errorf("%s with %s: error %q does not name TOKEN and %q", what, value, err, want)
			}
		}
	}
	many := config("c2", "true")
	for range 257 {
		many.Spec.Process.Env = append(many.Spec.Process.Env, "A=sealed.x")
	}
	wantErr(t, b.CreateContainer(t.Context(), many), agent.ErrInvalidArgument)
	if err := b.RemoveContainer(t.Context(), "c1", 0); err != nil {
		t.Fatal(err)
	}
	b.wantEmpty(t)
}

// A guest that opens nothing must not start a container with the sealed text.
func TestSealedEnvironmentWithoutOpener(t *testing.T) {
	b := running(t)
	c := config("c1", "true")
	c.Spec.Process.Env = []string{"TOKEN=sealed.x"}
	wantErr(t, b.CreateContainer(t.Context(), c), agent.ErrInvalidArgument)
	b.wantEmpty(t)
}
