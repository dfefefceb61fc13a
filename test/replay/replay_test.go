// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package replay

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/agenttest"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// variables are those that the sequences may use.
func variables() map[string]string {
	return map[string]string{
		"sid": "pod", "cid": "c1", "exec": "x1", "exec2": "x2", "image": "registry.example/i:1", "hostname": "replay-pod",
		"status": "0",
	}
}

// Every request and expectation of the project's sequences is well formed, in every step and place.
func TestSequences(t *testing.T) {
	t.Parallel()
	l, all, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"single", "pod"} {
		s, err := l.Sandbox(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s.Begin, s.End)
	}
	for _, s := range all {
		for _, step := range s.Steps {
			if name := step.rpc(); name != "" {
				if _, err := requestOf(name, step.Request, variables()); err != nil {
					t.Errorf("%s: step %s: %s: %v", s.Name, step.label, name, err)
				}
			}
			if _, err := expandAll(step.Want.Response, variables()); err != nil {
				t.Errorf("%s: step %s: %v", s.Name, step.label, err)
			}
		}
	}
}

// fakeAgent serves the whole API with real processes of the test host; only images, runtime, control groups, mounts and
// netlink are fakes.
func fakeAgent(t *testing.T) *client.Client {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	reaper, err := proc.New(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reaper.Close() })
	dir := t.TempDir()
	cgroups := &agenttest.Cgroups{}
	sandbox, err := agent.NewSandbox(agent.Config{
		Images: &agenttest.Images{}, Runtime: &agenttest.Runtime{}, Kernel: &agenttest.Kernel{}, Network: &agenttest.Network{},
		Cgroups: cgroups, OOM: cgroups.OOM(), Reaper: reaper, Log: log, RunDir: filepath.Join(dir, "run"), ResolvConf: filepath.Join(dir, "resolv.conf"),
	})
	if err != nil {
		t.Fatal(err)
	}
	server, err := rpc.NewServer(rpc.Config{Sandbox: sandbox, Machine: agenttest.Machine{}, Gate: rpc.AllowAll, Log: log, Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	address := "unix://" + filepath.Join(dir, "agent.sock")
	listener, err := rpc.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), listener) }()
	c, err := client.DialReady(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		if err := sandbox.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
		_ = server.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

// library holds a container without what the fakes do not take.
func library(t *testing.T) *Library {
	t.Helper()
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	l, err := NewLibrary(fstest.MapFS{
		"base/container.json": file(`{"container_id": "${cid}", "storages": [{"driver": "image_guest_pull", "source": "${image}"}],
			"OCI": {"Root": {"Path": "/"}, "Process": {"Args": ["sh"], "Env": ["A=b"], "Cwd": "/"}, "Linux": {"CgroupsPath": "/${sid}/${cid}"}}}`),
		"part/run.json": file(`{"why": "a script in a container", "steps": [
			{"call": "CreateContainer", "from": "container", "request": {"OCI": {"Process": {"Args": ["sh", "-c", "${script}"]}}}},
			{"call": "StartContainer", "request": {"container_id": "${cid}"}},
			{"read": "ReadStdout", "as": "${cid}/out", "request": {"container_id": "${cid}"}}]}`),
		"sandbox/plain.json": file(`{"why": "a test",
			"begin": [{"call": "CreateSandbox", "request": {"sandbox_id": "${sid}"}}, {"repeat": "GetOOMEvent", "as": "oom"},
				{"repeat": "Check", "as": "health", "every_ms": 10}],
			"end": [{"stop": "health", "want": {"at_least": 1}}, {"call": "DestroySandbox"}, {"await": "oom", "want": {"code": "INTERNAL"}}]}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

const head = `{"why": "a test", "where": {"process": "a test"}, "sandbox": "plain", "steps": [`

// run is the steps that make a container with a script.
func run(script string) string { return `{"do": "run", "set": {"script": "` + script + `"}}, ` }

// play runs steps against an agent of their own.
func play(t *testing.T, steps string) error {
	t.Helper()
	l := library(t)
	s, err := l.Parse("story", []byte(head+steps+"]}"))
	if err != nil {
		t.Fatal(err)
	}
	r := NewRunner(t.Context(), fakeAgent(t), Process, map[string]string{"sid": "pod", "image": "registry.example/i:1"})
	t.Cleanup(r.Close)
	sandbox, err := l.Sandbox(s.Sandbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context(), sandbox.Begin, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context(), s, map[string]string{"cid": "c1"}); err != nil {
		return err
	}
	return r.Run(t.Context(), sandbox.End, nil)
}

func TestRun(t *testing.T) {
	t.Parallel()
	sum := `"sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"`
	for name, steps := range map[string]string{
		"output and status": run("echo hello; exit 3") + `{"await": "${cid}/out", "want": {"output": "hello\n", "contains": ["ell"], "bytes": 6, ` + sum + `}},
			{"call": "WaitProcess", "request": {"container_id": "c1"}, "want": {"response": {"status": 3}}}`,
		"input and what blocks": run("cat") + `{"call": "WaitProcess", "request": {"container_id": "c1"}, "as": "wait"},
			{"call": "WriteStdin", "request": {"container_id": "c1", "data": "${base64:a}"}, "want": {"response": {"len": {"$at_least": 1}}}},
			{"await": "${cid}/out", "until": "a"}, {"blocked": ["wait", "${cid}/out"]},
			{"call": "CloseStdin", "request": {"container_id": "${cid}"}},
			{"await": "${cid}/out", "want": {"output": "a"}}, {"await": "wait", "want": {"response": {"status": 0}}}`,
		"statistics": run("sleep 1000") + `{"call": "StatsContainer", "request": {"container_id": "c1"},
				"want": {"response": {"network_stats": [], "cgroup_stats": {"pids_stats": {"current": 1}, "memory_stats": {"$absent": true}}}}},
			{"call": "SignalProcess", "request": {"container_id": "c1", "signal": 9}}, {"await": "${cid}/out"}`,
		"an error that is expected": `{"call": "StatsContainer", "request": {"container_id": "nobody"}, "want": {"code": "INVALID_ARGUMENT", "text": "Invalid container id"}}`,
		"only elsewhere":            `{"call": "StartContainer", "only": "guest", "request": {"container_id": "nobody"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := play(t, steps); err != nil {
				t.Error(err)
			}
		})
	}
}

// A wrong expectation fails, and the error names sequence, step, RPC and difference.
func TestRunFails(t *testing.T) {
	t.Parallel()
	const wait = `{"call": "WaitProcess", "request": {"container_id": "c1"}, "want": `
	for name, tt := range map[string]struct{ steps, want string }{
		"status":     {run("exit 3") + `{"await": "${cid}/out"}, ` + wait + `{"response": {"status": 4}}}`, "story: step 3: WaitProcess: answer.status is 3, want 4"},
		"field":      {run("exit 3") + `{"await": "${cid}/out"}, ` + wait + `{"response": {"state": 3}}}`, "story: step 3: WaitProcess: answer.state is null, want 3"},
		"bound":      {run("exit 3") + `{"await": "${cid}/out"}, ` + wait + `{"response": {"status": {"$at_least": 4}}}}`, "story: step 3: WaitProcess: answer.status is 3, want at least 4"},
		"presence":   {run("exit 3") + `{"await": "${cid}/out"}, ` + wait + `{"response": {"status": {"$absent": true}}}}`, "story: step 3: WaitProcess: answer.status is 3, want absent: true"},
		"code":       {`{"call": "StartContainer", "request": {"container_id": "nobody"}, "want": {"code": "NOT_FOUND"}}`, `story: step 1: StartContainer: it came to INTERNAL "start container: Invalid container id: \"nobody\"", want NOT_FOUND ""`},
		"text":       {`{"call": "StartContainer", "request": {"container_id": "nobody"}, "want": {"code": "INTERNAL", "text": "absent"}}`, `want INTERNAL "absent"`},
		"no error":   {`{"call": "Check", "want": {"code": "INTERNAL"}}`, "story: step 1: Check: it came to OK, want INTERNAL"},
		"error":      {`{"call": "StartContainer", "request": {"container_id": "nobody"}}`, "story: step 1: StartContainer: it came to INTERNAL"},
		"output":     {run("echo hello") + `{"await": "${cid}/out", "want": {"output": "hullo\n"}}`, `story: step 2: await c1/out: ReadStdout: output is "hello\n", want "hullo\n"`},
		"no output":  {run("echo hello") + `{"await": "${cid}/out", "want": {"output": ""}}`, `output is "hello\n", want ""`},
		"contains":   {run("echo hello") + `{"await": "${cid}/out", "want": {"contains": ["u"]}}`, `output is "hello\n", want "u" in it`},
		"bytes":      {run("echo hello") + `{"await": "${cid}/out", "want": {"bytes": 7}}`, `output is 6 bytes, want 7`},
		"digest":     {run("echo hello") + `{"await": "${cid}/out", "want": {"sha256": "00"}}`, `output of 6 bytes has the SHA-256 5891`},
		"until":      {run("echo hello") + `{"await": "${cid}/out", "until": "bye"}, {"await": "${cid}/out"}`, `story: step 2: await c1/out: ReadStdout has ended (OK) without "bye": output "hello\n"`},
		"blocked":    {run("echo hello") + `{"await": "${cid}/out"}, {"blocked": ["${cid}/out"]}`, `story: step 3: blocked c1/out: ReadStdout has ended: OK, output "hello\n"`},
		"background": {run("exit 3") + `{"call": "WaitProcess", "as": "w", "request": {"container_id": "c1"}}, {"await": "w", "want": {"response": {"status": 4}}}, {"await": "${cid}/out"}`, "story: step 3: await w: WaitProcess: answer.status is 3, want 4"},
		"stop":       {`{"repeat": "WaitProcess", "as": "loop", "request": {"container_id": "nobody"}}, {"stop": "loop", "want": {"at_least": 1}}`, "story: step 2: stop loop: WaitProcess has ended (INVALID_ARGUMENT"},
		"answers":    {`{"repeat": "WaitProcess", "as": "loop", "request": {"container_id": "nobody"}}, {"await": "loop", "want": {"code": "INVALID_ARGUMENT", "at_least": 1}}`, "story: step 2: await loop: WaitProcess: 0 answers, want 1 at least"},
		"in a part":  {run("") + run("") + `{"await": "${cid}/out"}`, "story: step 2.1: CreateContainer: it came to ALREADY_EXISTS"},
		"unknown":    {`{"await": "nothing"}`, `story: step 1: await nothing: nothing is called "nothing"`},
		"variable":   {`{"call": "StartContainer", "request": {"container_id": "${who}"}}`, "story: step 1: StartContainer: request: nothing is known of ${who}"},
		"request":    {`{"call": "StartContainer", "request": {"container": "c1"}}`, "story: step 1: StartContainer: request: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := play(t, tt.steps)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
}

// A call that does not come back ends with the context, and the error says what was waited for.
func TestRunHangs(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	j := start(t.Context(), "Check", func(ctx context.Context, _ *job) error { <-ctx.Done(); return nil })
	if _, err := j.wait(ctx); err == nil || !strings.Contains(err.Error(), "Check has not ended: context canceled") {
		t.Errorf("wait: %v", err)
	}
	if err := j.until(ctx, "x"); err == nil || !strings.Contains(err.Error(), `Check has not given "x": context canceled`) {
		t.Errorf("until: %v", err)
	}
	j.stop()
	<-j.done
}

// What is wrong with a sequence by itself is found before anything is sent.
func TestParse(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ text, want string }{
		"field":             {head + `{"cal": "Check"}]}`, `unknown field "cal"`},
		"more":              {head + `]} {}`, "more behind"},
		"why":               {`{"where": {"guest": "x"}, "steps": []}`, "does not say why"},
		"place":             {`{"why": "x", "where": {"moon": "x"}, "steps": []}`, `runs in "moon"`},
		"reason":            {`{"why": "x", "where": {"guest": ""}, "steps": []}`, `for the reason ""`},
		"nothing to do":     {head + `{}]}`, "step 1: 0 things to do"},
		"two things":        {head + `{"call": "Check", "await": "x"}]}`, "2 things to do"},
		"RPC":               {head + `{"call": "Chek"}]}`, `no RPC "Chek"`},
		"stream":            {head + `{"read": "Check", "as": "x"}]}`, "Check reads no stream"},
		"loop without name": {head + `{"read": "ReadStdout"}]}`, "without a name"},
		"name":              {head + `{"await": "x", "as": "y"}]}`, "not in the background"},
		"until":             {head + `{"call": "Check", "until": "y"}]}`, "until belongs to await"},
		"only":              {head + `{"call": "Check", "only": "moon"}]}`, `only in "moon"`},
		"code":              {head + `{"call": "Check", "want": {"code": "NOPE"}}]}`, `"NOPE" is no status code`},
		"base":              {head + `{"call": "Check", "from": "moon"}]}`, `no base "moon"`},
		"part":              {head + `{"do": "moon"}]}`, "moon.json"},
		"append":            {head + `{"call": "CreateContainer", "from": "container", "request": {"OCI+": [1]}}]}`, "OCI+: not a list"},
		"never awaited":     {head + `{"call": "Check", "as": "x"}, {"await": "x", "until": "y"}]}`, `step 1: nothing waits for the end of "x"`},
		"never in a part":   {head + `{"do": "run", "set": {"cid": "c2", "script": "x"}}, {"await": "${cid}/out"}]}`, `step 1.3: nothing waits for the end of "c2/out"`},
	} {
		if _, err := library(t).Parse("story", []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q in it", name, err, tt.want)
		}
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	var base, over, want any
	for text, v := range map[string]any{
		`{"a": {"b": 1, "c": [1]}, "d": [1]}`:                  &base,
		`{"a": {"b": 2}, "d+": [2, 3], "e": null}`:             &over,
		`{"a": {"b": 2, "c": [1]}, "d": [1, 2, 3], "e": null}`: &want,
	} {
		if err := decode([]byte(text), v); err != nil {
			t.Fatal(err)
		}
	}
	before := text(base)
	got, err := merge(base, over)
	if err != nil || text(got) != text(want) {
		t.Errorf("%s, %v; want %s", text(got), err, text(want))
	}
	if text(base) != before {
		t.Error("the base has changed")
	}
}
