// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/agenttest"
	"github.com/cloister-cc/cloister/rpc"
)

// pullGuest is a guest that has created a container when its metrics have been asked for a number of times.
type pullGuest struct {
	rpc.Sandbox
	agenttest.Machine
	fetched func(asked int) string // the metrics
	enough  int
	fail    error

	mu      sync.Mutex
	asked   int
	done    chan struct{}
	removed chan struct{}
}

func newPullGuest(enough int, fetched func(int) string) *pullGuest {
	return &pullGuest{enough: enough, fetched: fetched, done: make(chan struct{}), removed: make(chan struct{})}
}

func (g *pullGuest) Metrics() (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked++; g.asked == g.enough {
		close(g.done)
	}
	return g.fetched(g.asked), nil
}

func (g *pullGuest) CreateContainer(context.Context, agent.ContainerConfig) error {
	if g.fail != nil {
		return g.fail
	}
	select {
	case <-g.done:
		return nil
	case <-g.removed:
		return errors.New("it is removed")
	}
}

func (g *pullGuest) RemoveContainer(context.Context, string, time.Duration) error {
	close(g.removed)
	return nil
}

func (g *pullGuest) DropStaleMounts(context.Context) {}

// fetches are the metrics of an agent that pulls an image of 2 MiB beside what it pulled before.
func fetches(asked int) string {
	const counter = "# TYPE cloister_agent_image_fetched_bytes_total counter\ncloister_agent_image_fetched_bytes_total 100\n"
	if asked == 1 {
		return counter
	}
	return counter + "# TYPE cloister_agent_image_pull_bytes gauge\n" +
		fmt.Sprintf("cloister_agent_image_pull_bytes{digest=\"sha256:11\",item=\"fetched\"} %d\n", min(asked-1, 2)<<20) +
		"cloister_agent_image_pull_bytes{digest=\"sha256:11\",item=\"total\"} 2097152\n" +
		"# TYPE cloister_agent_image_pull_layers gauge\ncloister_agent_image_pull_layers{digest=\"sha256:11\",item=\"total\"} 3\n"
}

func TestCtlPull(t *testing.T) {
	t.Parallel()
	there := func(int) string { return strings.Split(fetches(1), "\n# TYPE cloister_agent_image_pull")[0] }
	silent := func(int) string { return "x 1\n" }
	state := fmt.Errorf("the sandbox has not been created: %w", agent.ErrState)
	for name, tt := range map[string]struct {
		args    string
		guest   *pullGuest
		out     string // a pattern
		stderr  string
		failure string
	}{
		"text":       {args: "i", guest: newPullGuest(3, fetches), out: `^i: 2\.0 MiB fetched in [0-9.]+m?s, layers: 3, sha256:11\n$`},
		"json":       {args: "--json i", guest: newPullGuest(3, fetches), out: `^{"image":"i","digest":"sha256:11","layers":3,"bytes":2097152,"ms":[0-9]+}\n$`},
		"there":      {args: "--sandbox pod i", guest: newPullGuest(1, there), out: `^i: it was there, looked up in [0-9.]+m?s\n$`},
		"there json": {args: "--json i", guest: newPullGuest(1, there), out: `^{"image":"i","bytes":0,"ms":[0-9]+}\n$`},
		"silent":     {args: "i", guest: newPullGuest(1, silent), out: `^i: there after [0-9.]+m?s\n$`, stderr: "the guest tells nothing about progress: "},
		"silent json": {
			args: "i --json", guest: newPullGuest(1, silent), out: `^{"image":"i","ms":[0-9]+}\n$`, stderr: "the guest tells nothing about progress: ",
		},
		"no sandbox": {
			args: "i", guest: &pullGuest{fail: state, fetched: fetches}, out: "^$",
			failure: "the sandbox has not been created", stderr: "cloister: hint: has the sandbox been created? 'cloister ctl create-sandbox ID' does that",
		},
		"fails": {args: "i", guest: &pullGuest{fail: errors.New("no such image"), fetched: fetches}, out: "^$", failure: "no such image"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := newRootCommand()
			var stdout, stderr bytes.Buffer
			root.SetOut(&stdout)
			root.SetErr(&stderr)
			root.SetArgs(append([]string{"ctl", "pull", "--address", serve(t, tt.guest, tt.guest, rpc.AllowAll)}, strings.Fields(tt.args)...))
			err := root.ExecuteContext(t.Context())
			if (err != nil) != (tt.failure != "") || err != nil && !strings.Contains(err.Error(), tt.failure) {
				t.Fatalf("error %v, want %q", err, tt.failure)
			}
			if err != nil {
				report(&stderr, err)
			}
			if !regexp.MustCompile(tt.out).MatchString(stdout.String()) || !strings.Contains(stderr.String(), tt.stderr) {
				t.Errorf("printed %q and %q, want %q and %q", &stdout, &stderr, tt.out, tt.stderr)
			}
		})
	}
}

// On a terminal there is a bar. Ctrl-C ends the command, not the pull, and says so.
func TestCtlPullInterrupted(t *testing.T) {
	t.Parallel()
	g := newPullGuest(-1, fetches)
	user, program := newTerminal(t)
	ctx, cancel := context.WithCancel(t.Context())
	root := newRootCommand()
	root.SetOut(io.Discard)
	root.SetErr(program)
	root.SetArgs([]string{"ctl", "pull", "--address", serve(t, g, g, rpc.AllowAll), "i"})
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	var shown strings.Builder
	for buf := make([]byte, 1024); !strings.Contains(shown.String(), "50%"); {
		n, err := user.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		shown.Write(buf[:n])
	}
	cancel()
	err := <-done
	var reported bytes.Buffer
	report(&reported, err)
	if exitCode(err) != exitFailure || !strings.Contains(reported.String(), "the guest goes on with a pull that has begun") {
		t.Errorf("reported %q", &reported)
	}
	if !strings.Contains(shown.String(), "pull") {
		t.Errorf("shown %q", shown.String())
	}
	<-g.removed
}
