// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
)

// inProgram is a container that runs a part of this test binary.
func inProgram(id, part string) agent.ContainerConfig {
	return agent.ContainerConfig{
		ID:       id,
		Spec:     &specs.Spec{Process: &specs.Process{Args: []string{"/program", inContainer, part}, Cwd: "/"}},
		Storages: []agent.Storage{{Driver: agent.DriverImageGuestPull, Source: "registry.example/app:1"}},
	}
}

// A terminal from its first size to the end of its input, for a container's own process and for a further one.
func TestTerminalOverCrun(t *testing.T) {
	p := newPod(t)
	c := inProgram("c1", "terminal")
	c.Spec.Process.Terminal = true
	c.Spec.Process.ConsoleSize = &specs.Box{Height: 30, Width: 100}
	p.run(t, c)
	p.useTerminal(t, "c1", "")
	p.run(t, inProgram("c2", "serve"))
	p.say(t, "c2", "", "serving\n")
	process := *c.Spec.Process
	process.User = specs.User{UID: 1000, GID: 1000}
	if err := p.Exec(t.Context(), "c2", "e1", &process); err != nil {
		t.Fatal(err)
	}
	p.useTerminal(t, "c2", "e1")
}

func (p *pod) useTerminal(t *testing.T, id, execID string) {
	t.Helper()
	ctx := t.Context()
	p.say(t, id, execID, "at first 30x100\r\n")
	if err := p.ResizeTerminal(id, execID, 40, 120); err != nil {
		t.Fatal(err)
	}
	p.say(t, id, execID, "now 40x120\r\n")
	if err := p.WriteStdin(ctx, id, execID, []byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	p.say(t, id, execID, "hello\r\nline hello\r\n") // the terminal's echo, and the answer
	if data, err := p.ReadStderr(ctx, id, execID, 10); err != nil || len(data) != 0 {
		t.Errorf("standard error of a terminal: %q, %v", data, err)
	}
	if err := p.CloseStdin(ctx, id, execID); err != nil {
		t.Fatal(err)
	}
	p.wantStatus(t, id, execID, 6)
	if rest := p.output(t, id, execID); rest != "" {
		t.Errorf("more output: %q", rest)
	}
}

func TestPipesOverCrun(t *testing.T) {
	const size = 1 << 19
	p := newPodWith(t, func(_ *pod, c *agent.Config) { c.PipeSize = size })
	p.run(t, inProgram("c1", "pipes"))
	if got, want := p.output(t, "c1", ""), strings.Repeat("524288 <nil>\n", 3); got != want {
		t.Errorf("pipes of the container hold %q", got)
	}
	c := busybox("c2", "echo a > /dev/stdout; echo b >> /proc/self/fd/1; echo c > /dev/stderr; cat; exit 3")
	c.Spec.Process.User = specs.User{UID: 1000, GID: 1000}
	p.run(t, c)
	text := strings.Repeat("0123456789", 200_000) // more than the pipes hold
	sent := make(chan error)
	go func() {
		err := p.WriteStdin(t.Context(), "c2", "", []byte(text))
		if err == nil {
			err = p.CloseStdin(t.Context(), "c2", "")
		}
		sent <- err
	}()
	if got := p.output(t, "c2", ""); got != "a\nb\n"+text {
		t.Errorf("%d bytes of output: %.40q", len(got), got)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if data, err := p.ReadStderr(t.Context(), "c2", "", 10); err != nil || string(data) != "c\n" {
		t.Errorf("standard error %q, %v", data, err)
	}
	p.wantStatus(t, "c2", "", 3)
}
