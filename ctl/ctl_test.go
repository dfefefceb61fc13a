// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cloister-cc/cloister/agent/agenttest"
	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/rpc"
	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/rpc/pb/types"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSession(t *testing.T, sandbox rpc.Sandbox) *Session {
	t.Helper()
	return newSessionOf(t, sandbox, agenttest.Machine{})
}

func newSessionOf(t *testing.T, sandbox rpc.Sandbox, machine rpc.Machine) *Session {
	t.Helper()
	server, err := rpc.NewServer(rpc.Config{Sandbox: sandbox, Machine: machine, Gate: rpc.AllowAll, Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	address := "unix://" + filepath.Join(t.TempDir(), "s")
	l, err := rpc.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	c, err := client.DialReady(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return NewSession(c)
}

func TestRun(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		options func(o *RunOptions)
		fail    string
		status  int
		out     string
		err     bool
		calls   []string
	}{
		"plain": {
			options: func(*RunOptions) {}, status: 7, out: "exit 7",
			calls: []string{"sandbox c1 ", "create c1 r/i:1", "start c1", "wait c1 ", "signal c1  9", "remove c1", "destroy"},
		},
		"network and pause": {
			options: func(o *RunOptions) {
				o.Hostname = "h"
				o.Link = &Link{Name: "eth0", MAC: "02:00:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24")}}
				o.Routes = []Route{{Gateway: netip.MustParseAddr("10.0.2.2"), Device: "eth0"}}
				o.Pause = true
			}, status: 7, out: "exit 7",
			calls: []string{
				"interface eth0 02:00:00:00:00:01 [10.0.2.15/24]", "route 10.0.2.2 eth0", "sandbox c1-sandbox h",
				"create c1-sandbox pause", "start c1-sandbox", "create c1 r/i:1", "start c1", "wait c1 ", "signal c1  9", "remove c1",
				"signal c1-sandbox  9", "remove c1-sandbox", "destroy",
			},
		},
		"exec": {
			options: func(o *RunOptions) {
				o.Container.Process.Args, o.Exec.Args = []string{"sleep"}, []string{"exit", "3"}
				o.KeepSandbox = true
			}, status: 3, out: "exit 3",
			calls: []string{
				"sandbox c1 ", "create c1 r/i:1", "start c1", `exec c1 exec-1 ["exit" "3"]`, "wait c1 exec-1", "signal c1  9", "signal c1  9",
				"remove c1",
			},
		},
		"create fails": {
			options: func(*RunOptions) {}, fail: "create", err: true, calls: []string{"sandbox c1 ", "create c1 r/i:1", "destroy"},
		},
		"start fails": {
			options: func(*RunOptions) {}, fail: "start", err: true,
			calls: []string{"sandbox c1 ", "create c1 r/i:1", "start c1", "remove c1", "destroy"},
		},
		"sandbox fails": {options: func(*RunOptions) {}, fail: "sandbox", err: true, calls: []string{"sandbox c1 "}},
		"remove fails": {
			options: func(*RunOptions) {}, fail: "remove", err: true, status: 7, out: "exit 7",
			calls: []string{"sandbox c1 ", "create c1 r/i:1", "start c1", "wait c1 ", "signal c1  9", "remove c1", "destroy"},
		},
		"no image": {options: func(o *RunOptions) { o.Container.Image = "" }, err: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod()
			p.fail = tt.fail
			s := newSession(t, p)
			var out bytes.Buffer
			o := RunOptions{
				Container: Container{ID: "c1", Image: "r/i:1", Process: Process{Args: []string{"exit", "7"}}}, Stdout: &out,
			}
			tt.options(&o)
			status, err := s.Run(t.Context(), o)
			if (err != nil) != tt.err || status != tt.status || out.String() != tt.out {
				t.Errorf("status %d, output %q, error %v", status, out.String(), err)
			}
			if tt.fail != "" && !strings.Contains(err.Error(), errTest.Error()) {
				t.Errorf("error %v does not say what failed", err)
			}
			if diff := cmp.Diff(tt.calls, p.calls()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRunInterrupted: when the context ends while the container runs, all that was made is removed.
func TestRunInterrupted(t *testing.T) {
	t.Parallel()
	p := newPod()
	s := newSession(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	s.OnStep = func(step Step) {
		if strings.HasPrefix(step.Name, "StartContainer") {
			cancel()
		}
	}
	_, err := s.Run(ctx, RunOptions{Container: Container{ID: "c1", Image: "r/i:1", Process: Process{Args: []string{"sleep"}}}})
	if err == nil {
		t.Error("no error")
	}
	if got := p.calls(); !slices.Equal(got[len(got)-3:], []string{"signal c1  9", "remove c1", "destroy"}) {
		t.Errorf("calls %q", got)
	}
}

// TestRequestGolden: the requests that a container and a pause container become.
func TestRequestGolden(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]Container{
		"container": {ID: "c1", SandboxID: "s1", Image: "registry.example:5000/demo@sha256:00", Process: Process{
			Args: []string{"/bin/echo", "hi"}, Env: []string{"A=1"}, Cwd: "/tmp", UID: 1, GID: 2,
		}, ReadonlyRootfs: true, SandboxPIDNS: true, Annotations: map[string]string{"x": "y"}},
		"pause": {ID: "s1", Pause: true},
	} {
		r, err := c.Request()
		if err != nil {
			t.Fatal(err)
		}
		compact, err := protojson.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer // protojson varies its spaces on purpose
		if err := json.Indent(&buf, compact, "", "  "); err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.WriteFile(golden, append(buf.Bytes(), '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), buf.String()+"\n"); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestRequestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []Container{{ID: "c1", Process: Process{Args: []string{"x"}}}, {ID: "c1", Image: "r/i"}} {
		if r, err := c.Request(); err == nil {
			t.Errorf("%+v: %v", c, r)
		}
	}
}

func TestStepPrinter(t *testing.T) {
	t.Parallel()
	steps := []Step{{Name: "Check", Took: 1500 * time.Microsecond}, {Name: "CreateSandbox", Took: time.Second, Err: errTest}}
	for asJSON, want := range map[bool]string{
		false: "     1.5ms  ok      Check\n        1s  failed  CreateSandbox\n",
		true:  `{"step":"Check","ms":1.5}` + "\n" + `{"step":"CreateSandbox","ms":1000,"error":"failed as told"}` + "\n",
	} {
		var out bytes.Buffer
		show := StepPrinter(&out, asJSON)
		for _, s := range steps {
			show(s)
		}
		if out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	}
}

func TestFormatRoutes(t *testing.T) {
	t.Parallel()
	got := FormatRoutes(&pb.Routes{Routes: []*types.Route{{Gateway: "10.0.0.1", Device: "eth0"}, {Dest: "10.0.0.0/24", Device: "eth0"}}})
	if want := "default via 10.0.0.1 dev eth0\n10.0.0.0/24 dev eth0"; got != want {
		t.Errorf("got %q", got)
	}
}

// TestEveryMethodIsAStep: each exported request of a session is seen by OnStep under the method's own name.
func TestEveryMethodIsAStep(t *testing.T) {
	t.Parallel()
	s := newSession(t, newPod())
	var names []string
	s.OnStep = func(step Step) { names = append(names, step.Name[:strings.IndexAny(step.Name+"(", "(+")]) }
	ctx := t.Context()
	c := Container{ID: "c1", Image: "r/i", Process: Process{Args: []string{"exit", "0"}}}
	_, err1 := s.Check(ctx)
	_, err2 := s.Version(ctx)
	_, err3 := s.Details(ctx)
	_, err4 := s.UpdateInterface(ctx, Link{Name: "eth0", MAC: "02:00:00:00:00:01"})
	_, err5 := s.UpdateRoutes(ctx, []Route{{Dest: netip.MustParsePrefix("fd00::/8"), Device: "eth0"}})
	_, err6 := s.Stats(ctx, "c1")
	_, err7 := s.NextOOM(ctx)
	_, err8 := s.Metrics(ctx)
	_, err9 := s.TerminationLog(ctx, "c1")
	_, err10 := s.Copy(ctx, os.DevNull, "x") // not copied, and a step all the same
	if err10 == nil {
		t.Error("a device was copied")
	}
	err := errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, err9, s.CreateSandbox(ctx, "s1", "", nil), s.CreateContainer(ctx, c), s.StartContainer(ctx, "c1"),
		s.Exec(ctx, "c1", "e1", Process{Args: []string{"exit", "0"}}), s.Attach(ctx, "c1", "e1", &bytes.Buffer{}, &bytes.Buffer{}),
		s.WriteStdin(ctx, "c1", "e1", []byte("x")), s.CloseStdin(ctx, "c1", "e1"), s.Resize(ctx, "c1", "e1", Size{Rows: 1, Columns: 2}),
		s.PauseContainer(ctx, "c1"), s.ResumeContainer(ctx, "c1"), s.UpdateContainer(ctx, "c1", Limits{CPUShares: 1}),
		s.Signal(ctx, "c1", "e1", 15), s.RemoveContainer(ctx, "c1"), s.DestroySandbox(ctx))
	if err != nil {
		t.Fatal(err)
	}
	if status, err := s.Wait(ctx, "c1", "e1"); status != 0 || err != nil {
		t.Fatal(status, err)
	}
	methods := pb.File_rpc_pb_agent_proto.Services().Get(0).Methods()
	for _, n := range names[2:] { // the first two are Health's
		if methods.ByName(protoreflect.Name(n)) == nil {
			t.Errorf("%s is no method", n)
		}
	}
	if len(names) != 26 {
		t.Errorf("%d steps: %q", len(names), names)
	}
}
