// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
)

func terminal(script string) *specs.Process {
	p := shell(script)
	p.Terminal = true
	return p
}

func TestStdin(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "cat; echo end")
	ctx := t.Context()
	for _, data := range []string{"one\n", "two\n"} {
		if err := b.WriteStdin(ctx, "c1", "", []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // a second time is no error
		if err := b.CloseStdin(ctx, "c1", "c1"); err != nil {
			t.Fatal(err)
		}
	}
	if out := b.stdout(t, "c1", ""); out != "one\ntwo\nend\n" {
		t.Errorf("output %q", out)
	}
	wantErr(t, b.WriteStdin(ctx, "c1", "", []byte("late")), agent.ErrNoWriter)
	wantErr(t, b.WriteStdin(ctx, "none", "", []byte("x")), agent.ErrInvalidContainerID)
	wantErr(t, b.CloseStdin(ctx, "c1", "none"), agent.ErrProcessNotFound)
}

// No data end the input, as the shim's end of file does.
func TestEmptyWriteEndsStdin(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	if err := b.Exec(t.Context(), "c1", "e1", shell("wc -c")); err != nil {
		t.Fatal(err)
	}
	// More than a pipe holds, so that the process has to read meanwhile.
	if err := b.WriteStdin(t.Context(), "c1", "e1", bytes.Repeat([]byte("x"), 300_000)); err != nil {
		t.Fatal(err)
	}
	if err := b.WriteStdin(t.Context(), "c1", "e1", nil); err != nil {
		t.Fatal(err)
	}
	if out := strings.TrimSpace(b.stdout(t, "c1", "e1")); out != "300000" {
		t.Errorf("the process has read %s bytes", out)
	}
}

// A process that does not read blocks who writes to it, and nobody else; he can give up, and the container can be removed.
func TestFullStdin(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() { first <- b.WriteStdin(ctx, "c1", "", make([]byte, 1<<20)) }()
	b.start(t, "c2", "echo fine")
	if out := b.stdout(t, "c2", ""); out != "fine\n" {
		t.Errorf("another container says %q", out)
	}
	cancel()
	wantErr(t, <-first, context.Canceled)
	second := make(chan error)
	go func() { second <- b.WriteStdin(t.Context(), "c1", "", make([]byte, 1<<20)) }()
	if err := b.RemoveContainer(t.Context(), "c1", 0); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err == nil {
		t.Error("data went to a container that is gone")
	}
}

func TestTerminal(t *testing.T) {
	b := running(t)
	c := config("c1", "")
	c.Spec.Process = terminal(`read line; echo "got $line"; stty size; read more || echo eof; exit 7`)
	if err := b.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := b.ResizeTerminal("c1", "", 33, 44); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.ResizeTerminal("c1", "", -1, 0), agent.ErrInvalidArgument)
	wantErr(t, b.ResizeTerminal("c1", "", 0, 1<<16), agent.ErrInvalidArgument)
	if err := b.StartContainer(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	if err := b.WriteStdin(ctx, "c1", "", []byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if err := b.CloseStdin(ctx, "c1", ""); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.WriteStdin(ctx, "c1", "", []byte("late")), agent.ErrNoWriter)
	if data, err := b.ReadStderr(ctx, "c1", "", 10); err != nil || len(data) != 0 {
		t.Errorf("standard error of a terminal: %q, %v", data, err)
	}
	out := strings.ReplaceAll(b.stdout(t, "c1", ""), "\r", "")
	for _, want := range []string{"got hello\n", "33 44\n", "eof\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the terminal shows %q, without %q", out, want)
		}
	}
	b.wantStatus(t, "c1", "", 7)
}

// The end of the input comes after an unfinished line, too.
func TestTerminalEndsMidLine(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	if err := b.Exec(t.Context(), "c1", "e1", terminal("cat; echo end")); err != nil {
		t.Fatal(err)
	}
	if err := b.WriteStdin(t.Context(), "c1", "e1", []byte("no line feed")); err != nil {
		t.Fatal(err)
	}
	if err := b.CloseStdin(t.Context(), "c1", "e1"); err != nil {
		t.Fatal(err)
	}
	if out := b.stdout(t, "c1", "e1"); !strings.HasSuffix(out, "end\r\n") {
		t.Errorf("the terminal shows %q", out)
	}
	b.wantStatus(t, "c1", "e1", 0)
	wantErr(t, b.ResizeTerminal("c1", "", 1, 1), agent.ErrNoTerminal)
}

// What a process writes to its terminal at its end arrives whole, and what it leaves behind does not keep back the end.
func TestTerminalIsDrained(t *testing.T) {
	b := running(t)
	want := bytes.Repeat([]byte("0123456789"), 5000)
	b.start(t, "c1", "sleep 1000")
	if err := b.Exec(t.Context(), "c1", "e1", terminal("stty raw; (trap '' HUP; sleep 1000) & cat "+file(t, want))); err != nil {
		t.Fatal(err)
	}
	if got := b.stdout(t, "c1", "e1"); got != string(want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
	b.wantStatus(t, "c1", "e1", 0)
}

// A process that closes its terminal, and later opens it again, has not ended.
func TestTerminalReopened(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	script := `tty=$(tty); exec </dev/null >/dev/null 2>&1; sleep 0.3; echo again >$tty`
	if err := b.Exec(t.Context(), "c1", "e1", terminal(script)); err != nil {
		t.Fatal(err)
	}
	if out := b.stdout(t, "c1", "e1"); out != "again\r\n" {
		t.Errorf("the terminal shows %q", out)
	}
}

func TestPipeSize(t *testing.T) {
	b := runningWith(t, func(c *agent.Config) { c.PipeSize = 1 << 20 })
	data := bytes.Repeat([]byte("x"), 256<<10)
	b.start(t, "c1", "cat "+file(t, data)) // ends though nobody reads, for all of it fits
	b.wantStatus(t, "c1", "", 0)
	if out := b.stdout(t, "c1", ""); len(out) != len(data) {
		t.Errorf("%d bytes, want %d", len(out), len(data))
	}
}

// Files like /dev/stdout lead back to the pipe.
func TestStdoutReopened(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "echo one >/proc/self/fd/1; echo two >/proc/self/fd/1") // a guest has no /dev/stdout
	if out := b.stdout(t, "c1", ""); out != "one\ntwo\n" {
		t.Errorf("output %q", out)
	}
}

func TestPauseContainer(t *testing.T) {
	b := running(t)
	ctx := t.Context()
	c := config("c1", "sleep 1000")
	c.Spec.Linux = &specs.Linux{CgroupsPath: "/kata/c1"}
	if err := b.CreateContainer(ctx, c); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.ResumeContainer(ctx, "c1"), agent.ErrState)
	if err := b.PauseContainer(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.StartContainer(ctx, "c1"), agent.ErrState)
	wantErr(t, b.PauseContainer(ctx, "c1"), agent.ErrState)
	if !b.cgroups.Frozen()["/kata/c1"] {
		t.Errorf("frozen: %v", b.cgroups.Frozen())
	}
	if err := b.ResumeContainer(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	if err := b.StartContainer(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	b.cgroups.Hook = func(op, _ string) error {
		if op == "Freeze" {
			return boom
		}
		return nil
	}
	wantErr(t, b.PauseContainer(ctx, "c1"), boom)
	if b.cgroups.Frozen()["/kata/c1"] {
		t.Error("a container that did not freeze was not thawed")
	}
	b.cgroups.Hook = nil
	if err := b.PauseContainer(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.Exec(ctx, "c1", "e1", shell("true")), agent.ErrState)
	if err := b.Signal(ctx, "c1", "", 9); err != nil {
		t.Fatal(err)
	}
	b.wantStatus(t, "c1", "", 128+9)
	wantErr(t, b.PauseContainer(ctx, "none"), agent.ErrInvalidContainerID)
}

func TestWithoutCgroups(t *testing.T) {
	b := runningWith(t, func(c *agent.Config) { c.Cgroups, c.OOM = nil, nil })
	b.start(t, "c1", "sleep 1000")
	wantErr(t, b.PauseContainer(t.Context(), "c1"), agent.ErrUnsupported)
	stats, err := b.StatsContainer(t.Context(), "c1")
	if err != nil || stats == nil || stats.CPU != nil || stats.Memory != nil {
		t.Errorf("statistics %+v, %v; want none and no error", stats, err)
	}
	if err := b.Signal(t.Context(), "c1", "", 9); err != nil {
		t.Fatal(err)
	}
	b.wantStatus(t, "c1", "", 128+9)
}

func TestUpdateAndStats(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	ctx := t.Context()
	limit := int64(64 << 20)
	if err := b.UpdateContainer(ctx, "c1", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	if got := b.runtime.Resources("c1"); got == nil || got.Memory == nil || *got.Memory.Limit != limit {
		t.Errorf("the runtime got %+v", got)
	}
	if err := b.UpdateContainer(ctx, "c1", nil); err != nil {
		t.Errorf("nothing to update: %v", err)
	}
	if stats, err := b.StatsContainer(ctx, "c1"); err != nil || stats.Pids.Current != 1 {
		t.Errorf("statistics %+v, %v", stats, err)
	}
	wantErr(t, b.UpdateContainer(ctx, "none", nil), agent.ErrInvalidContainerID)
	_, err := b.StatsContainer(ctx, "none")
	wantErr(t, err, agent.ErrInvalidContainerID)
}

func TestOOM(t *testing.T) {
	b := running(t)
	c := config("c1", "sleep 1000")
	c.Spec.Linux = &specs.Linux{CgroupsPath: "/kata/c1"}
	if err := b.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	for range 2 { // two waiters, one event: one of them gets it
		go func() {
			id, err := b.NextOOM(t.Context())
			if err != nil {
				id = err.Error()
			}
			got <- id
		}()
	}
	oom := b.cgroups.OOM()
	if !oom.Report("/kata/c1") {
		t.Fatal("the container is not watched")
	}
	if id := <-got; id != "c1" {
		t.Errorf("event %q", id)
	}
	if err := b.RemoveContainer(t.Context(), "c1", 0); err != nil {
		t.Fatal(err)
	}
	if oom.Report("/kata/c1") {
		t.Error("a container that is gone is still watched")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := b.NextOOM(ctx)
	wantErr(t, err, context.DeadlineExceeded)
	if err := b.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id := <-got; !strings.Contains(id, "destroyed") {
		t.Errorf("the other waiter got %q", id)
	}
	_, err = b.NextOOM(t.Context())
	wantErr(t, err, agent.ErrState)
}

// A sandbox whose containers share a PID namespace gives that of the first to all others, whatever they ask for.
func TestSandboxSharesPIDNamespace(t *testing.T) {
	b := newBed(t)
	if err := b.Create(t.Context(), agent.SandboxConfig{ID: "pod", SharePIDNS: true}); err != nil {
		t.Fatal(err)
	}
	b.start(t, "c1", "sleep 1000")
	b.start(t, "c2", "sleep 1000")
	for id, joins := range map[string]bool{"c1": false, "c2": true} {
		data, err := os.ReadFile(filepath.Join(b.dir, "run", id, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(data), `{"type":"pid","path":`); got != joins {
			t.Errorf("%s joins a PID namespace: %t, want %t", id, got, joins)
		}
	}
}
