// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
)

func TestExec(t *testing.T) {
	b := running(t)
	c := config("c1", "sleep 1000")
	c.Spec.Process.Env = []string{"WHERE=container"}
	if err := b.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := b.StartContainer(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := b.Exec(ctx, "c1", "e1", &specs.Process{Args: []string{"sh", "-c", `echo "in $WHERE"; exit 6`}}); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.Exec(ctx, "c1", "e1", shell("true")), agent.ErrAlreadyExists)
	wantErr(t, b.Exec(ctx, "c1", "c1", shell("true")), agent.ErrAlreadyExists)
	wantErr(t, b.Exec(ctx, "c1", "", shell("true")), agent.ErrInvalidArgument)
	wantErr(t, b.Exec(ctx, "c1", "../x", shell("true")), agent.ErrInvalidArgument)
	wantErr(t, b.Exec(ctx, "c1", "e2", nil), agent.ErrInvalidArgument)
	if err := b.Exec(ctx, "c1", "e2", &specs.Process{Args: []string{"/does/not/exist"}}); err == nil {
		t.Error("a missing file was started")
	}
	if out := b.stdout(t, "c1", "e1"); out != "in container\n" {
		t.Errorf("output %q", out)
	}
	for range 2 {
		b.wantStatus(t, "c1", "e1", 6)
	}
	if data, err := b.ReadStdout(ctx, "c1", "e1", 10); err != nil || len(data) != 0 {
		t.Errorf("read after the end: %q, %v", data, err)
	}
	if err := b.Exec(ctx, "c1", "e2", shell("sleep 1000")); err != nil {
		t.Fatal(err)
	}
	if err := b.Signal(ctx, "c1", "e2", 15); err != nil {
		t.Fatal(err)
	}
	b.wantStatus(t, "c1", "e2", 128+15)
}

// The statuses of processes that were waited for are kept, but not for ever.
func TestFinishedExecsAreForgotten(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	const n = 140
	for i := range n {
		id := fmt.Sprintf("e%d", i)
		if err := b.Exec(t.Context(), "c1", id, shell(fmt.Sprintf("exit %d", i))); err != nil {
			t.Fatal(err)
		}
		b.wantStatus(t, "c1", id, i)
	}
	_, err := b.Wait(t.Context(), "c1", "e0")
	wantErr(t, err, agent.ErrProcessNotFound)
	b.wantStatus(t, "c1", "e20", 20)
	b.wantStatus(t, "c1", "e139", 139)
}

// Threat: the host starts processes and never asks for their end, so that the agent runs out of open files. Seen: after some,
// no more are started, until one is waited for.
func TestUnwaitedExecsAreBounded(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	var err error
	n := 0
	for ; err == nil && n < 2000; n++ {
		err = b.Exec(t.Context(), "c1", fmt.Sprintf("e%d", n), shell("exit 3"))
	}
	wantErr(t, err, agent.ErrState)
	if n != 1025 {
		t.Errorf("refused is number %d", n)
	}
	b.wantStatus(t, "c1", "e0", 3)
	if err := b.Exec(t.Context(), "c1", "more", shell("exit 4")); err != nil {
		t.Fatal(err)
	}
}

func TestSignalTermination(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		signal int
		want   int
	}{
		"SIGTERM that would be dropped becomes SIGKILL": {"echo ready; exec sleep 1000", 15, 128 + 9},
		"SIGTERM that is caught stays":                  {"trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done", 15, 4},
		"another signal stays":                          {"echo ready; exec sleep 1000", 12, 128 + 12},
		"SIGKILL":                                       {"trap '' TERM; echo ready; sleep 1000", 9, 128 + 9},
	} {
		t.Run(name, func(t *testing.T) {
			b := running(t)
			b.start(t, "c1", test.script)
			if _, err := b.ReadStdout(t.Context(), "c1", "", 100); err != nil {
				t.Fatal(err)
			}
			if err := b.Signal(t.Context(), "c1", "", test.signal); err != nil {
				t.Fatal(err)
			}
			b.wantStatus(t, "c1", "", test.want)
		})
	}
}

// SIGKILL without exec id is for every process of the container.
func TestKillAll(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	if err := b.Exec(t.Context(), "c1", "e1", shell("sleep 1000")); err != nil {
		t.Fatal(err)
	}
	if err := b.Signal(t.Context(), "c1", "", 9); err != nil {
		t.Fatal(err)
	}
	b.wantStatus(t, "c1", "", 128+9)
	b.wantStatus(t, "c1", "e1", 128+9)
}

func TestManyWaiters(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 0.2; exit 9")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { b.wantStatus(t, "c1", "", 9) })
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Wait(ctx, "c1", ""); err == nil {
		t.Error("a cancelled wait has a status")
	}
	wg.Wait()
}

// file writes a file that a container of the stand-in runtime can read.
func file(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Output of more than a pipe holds, read by and by, arrives whole.
func TestLongOutput(t *testing.T) {
	b := running(t)
	want := bytes.Repeat([]byte("0123456789"), 100_000)
	b.start(t, "c1", "cat "+file(t, want))
	if got := b.stdout(t, "c1", ""); got != string(want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
	b.wantStatus(t, "c1", "", 0)
}

// A background process that keeps the pipe open after the exit must not keep back the end of the stream.
func TestBackgroundProcessHoldsPipe(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000 & echo done")
	if out := b.stdout(t, "c1", ""); out != "done\n" {
		t.Errorf("output %q", out)
	}
	b.wantStatus(t, "c1", "", 0)
}

// Nor one that floods it.
func TestBackgroundProcessFloodsPipe(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "while :; do echo flood; done & echo done")
	if out := b.stdout(t, "c1", ""); !strings.Contains(out, "done\n") {
		t.Errorf("%d bytes, without what the process wrote", len(out))
	}
	b.wantStatus(t, "c1", "", 0)
}

// What a process left in the pipe is there for a reader that comes late.
func TestLateReader(t *testing.T) {
	b := running(t)
	want := bytes.Repeat([]byte("0123456789"), 4000)
	b.start(t, "c1", "sleep 1000 & cat "+file(t, want))
	b.wantStatus(t, "c1", "", 0)
	// The cut comes half a second after the exit, so that this read finds it before or after; the result is the same.
	if got := b.stdout(t, "c1", ""); got != string(want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}

func TestCancelledRead(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 0.3; echo late; sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	for range 3 {
		go func() {
			_, err := b.ReadStdout(ctx, "c1", "", 10)
			ended <- err
		}()
	}
	cancel()
	for range 3 {
		wantErr(t, <-ended, context.Canceled)
	}
	if data, err := b.ReadStdout(t.Context(), "c1", "", 10); err != nil || string(data) != "late\n" {
		t.Errorf("read after a cancelled one: %q, %v", data, err)
	}
}
