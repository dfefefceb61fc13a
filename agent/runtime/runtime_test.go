// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/proc"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == inContainer {
		os.Exit(containerMain(os.Args[2:]))
	}
	if status, ran := rerun(); ran {
		os.Exit(status)
	}
	goleak.VerifyTestMain(m)
}

// fakeCrun writes its arguments, one a line, to the file calls beside it, then behaves like the real one as far as
// stdio, pid file, log and status go. Its behaviour depends on the container id, the last argument but for kill.
const fakeCrun = `#!/bin/sh
dir=${0%/*}
printf '%s\n' "$@" >> "$dir/calls"
while [ $# -gt 0 ]; do
	case $1 in
	--log) log=$2; shift;;
	--pid-file) pidfile=$2; shift;;
	--process) cat "$2" > "$dir/process.json"; shift;;
	esac
	id=$1; shift
done
case $id in
fails)
	printf '%s\n' '{"msg":"some debugging","level":"debug"}' 'no JSON' '{"msg":"open \u0007/x: No such file","level":"error"}' > "$log"
	echo 'for the container' >&2
	exit 1;;
silent) exit 4;;
hangs) exec sleep 1000;;
nopid) exit 0;;
badpid) echo -5 > "$pidfile"; exit 0;;
esac
if [ -n "$pidfile" ]; then
	cat; echo out; echo err >&2
	sleep 0.01 & echo $! > "$pidfile"
fi
exit 0
`

type bench struct {
	*Runtime
	dir    string
	reaper *proc.Reaper
}

func newBench(t *testing.T, timeout time.Duration) *bench {
	t.Helper()
	reaper, err := proc.New(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reaper.Close() })
	b := &bench{dir: t.TempDir(), reaper: reaper}
	command := filepath.Join(b.dir, "crun")
	if err := os.WriteFile(command, []byte(fakeCrun), 0o700); err != nil {
		t.Fatal(err)
	}
	b.Runtime, err = New(Config{Command: command, Root: filepath.Join(b.dir, "root"), Reaper: reaper, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// calls returns what the fake was called with since the last time, with the name of the exchange folder left out.
func (b *bench) calls(t *testing.T) string {
	t.Helper()
	path := filepath.Join(b.dir, "calls")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", " ")
	text = strings.ReplaceAll(text, b.dir, "")
	return regexp.MustCompile(`exchange/([a-z]+)[0-9]+/`).ReplaceAllString(text, "exchange/$1*/")
}

// stdio returns streams whose input says "in" and whose output goes to files that text reads.
func stdio(t *testing.T) (s agent.Stdio, text func() (out, err string)) {
	t.Helper()
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	s = agent.Stdio{Stdin: open("in"), Stdout: open("out"), Stderr: open("err")}
	if _, err := s.Stdin.WriteAt([]byte("in\n"), 0); err != nil {
		t.Fatal(err)
	}
	return s, func() (string, string) {
		var both [2]string
		for i, f := range []*os.File{s.Stdout, s.Stderr} {
			data, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			both[i] = string(data)
		}
		return both[0], both[1]
	}
}

const global = "--root /root/state --log /root/exchange/%*/log.json --log-format json --cgroup-manager=cgroupfs "

func TestCommands(t *testing.T) {
	b := newBench(t, 0)
	ctx := t.Context()
	if err := os.Mkdir(filepath.Join(b.state, "known"), 0o700); err != nil {
		t.Fatal(err)
	}
	args := func(what, rest string) string { return strings.ReplaceAll(global+what+" "+rest, "%", what) }
	for _, test := range []struct {
		name string
		call func() error
		want string
	}{
		{"start", func() error { return b.Start(ctx, "c1") }, args("start", "c1")},
		{
			"update", func() error { return b.Update(ctx, "c1", &specs.LinuxResources{}) },
			args("update", "--resources /root/exchange/update*/resources.json c1"),
		},
		{"delete", func() error { return b.Delete(ctx, "known") }, args("delete", "--force known")},
	} {
		if err := test.call(); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if got := b.calls(t); got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.name, got, test.want)
		}
	}
	if err := b.Delete(ctx, "unknown"); err != nil {
		t.Errorf("delete of an unknown container: %v", err)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "calls")); err == nil {
		t.Error("the runtime was asked to delete what it does not know")
	}
}

func TestCreateAndExec(t *testing.T) {
	b := newBench(t, 0)
	process := &specs.Process{Args: []string{"id"}, Cwd: "/", Env: []string{"TOKEN=x"}}
	for what, call := range map[string]func(agent.Stdio) (agent.Started, error){
		"create": func(s agent.Stdio) (agent.Started, error) { return b.Create(t.Context(), "c1", "/bundle", s) },
		"exec":   func(s agent.Stdio) (agent.Started, error) { return b.Exec(t.Context(), "c1", process, s) },
	} {
		s, text := stdio(t)
		release := b.reaper.Hold()
		started, err := call(s)
		if err != nil {
			t.Fatal(err)
		}
		p, err := b.reaper.Adopt(started.PID)
		release()
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if out, errs := text(); out != "in\nout\n" || errs != "err\n" {
			t.Errorf("%s: output %q and %q", what, out, errs)
		}
		rest := map[string]string{
			"create": "create --bundle /bundle --pid-file /root/exchange/create*/pid c1",
			"exec":   "exec --process /root/exchange/exec*/process.json --detach --pid-file /root/exchange/exec*/pid c1",
		}[what]
		if got, want := b.calls(t), strings.ReplaceAll(global, "%", what)+rest; got != want {
			t.Errorf("%s:\n got %s\nwant %s", what, got, want)
		}
	}
	data, err := os.ReadFile(filepath.Join(b.dir, "process.json"))
	if err != nil || !strings.Contains(string(data), `"TOKEN=x"`) {
		t.Errorf("process.json: %s, %v", data, err)
	}
	b.wantNothingLeft(t)
}

func (b *bench) wantNothingLeft(t *testing.T) {
	t.Helper()
	left, err := os.ReadDir(b.exchange)
	if err != nil || len(left) != 0 {
		t.Errorf("left in the exchange folder: %v, %v", left, err)
	}
}

func TestErrors(t *testing.T) {
	b := newBench(t, 0)
	ctx := t.Context()
	s, _ := stdio(t)
	create := func(id string) error {
		_, err := b.Create(ctx, id, "/bundle", s)
		return err
	}
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"create fails":     {create("fails"), "runtime create: open ?/x: No such file"},
		"start fails":      {b.Start(ctx, "fails"), "runtime start: open ?/x: No such file"},
		"fails silently":   {create("silent"), "runtime create: exit status 4, and nothing in its log"},
		"start silently":   {b.Start(ctx, "silent"), "runtime start: exit status 4, and nothing in its log"},
		"writes no pid":    {create("nopid"), "runtime create: read pid: "},
		"writes a bad pid": {create("badpid"), `runtime create: read pid: "-5\n" is none`},
	} {
		if test.err == nil || !strings.HasPrefix(test.err.Error(), test.want) {
			t.Errorf("%s: %v; want %s", name, test.err, test.want)
		}
	}
	_, err := b.Exec(ctx, "fails", &specs.Process{}, s)
	if err == nil || err.Error() != "runtime exec: open ?/x: No such file" {
		t.Errorf("exec: %v", err)
	}
	b.wantNothingLeft(t)
}

// A command runs to its end though its caller has gone away, but not for ever.
func TestContexts(t *testing.T) {
	b := newBench(t, 300*time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- b.Start(ctx, "hangs") }()
	cancel()
	// Either it had not begun, or it runs into its own time.
	if err := <-ended; !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := b.Start(t.Context(), "hangs"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a runtime that hangs: %v", err)
	}
	if err := b.Start(ctx, "c1"); !errors.Is(err, context.Canceled) {
		t.Errorf("start for a caller that has gone: %v", err)
	}
}

func TestNewWantsParts(t *testing.T) {
	if _, err := New(Config{Command: "/x"}); err == nil {
		t.Error("a runtime without a folder and a reaper")
	}
	b := newBench(t, 0)
	if _, err := New(Config{Command: "/x", Root: filepath.Join(b.dir, "crun", "x"), Reaper: b.reaper}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a folder below a file: %v", err)
	}
}

func TestReadLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got := readLog(path); got != "" {
		t.Errorf("no file: %q", got)
	}
	for _, test := range []struct{ log, want string }{
		{"", ""},
		{"{", ""},
		{`{"msg":"a","level":"error"}` + "\n" + `{"msg":"b","level":"warning"}` + "\n" + `{"msg":"c","level":"error"}`, "a; c"},
		{`{"msg":"` + strings.Repeat("é", maxText) + `","level":"error"}`, strings.Repeat("é", maxText/2) + "…"},
		{strings.Repeat("x", maxLog) + "\n" + `{"msg":"a","level":"error"}`, ""},
	} {
		if err := os.WriteFile(path, []byte(test.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := readLog(path); got != test.want {
			t.Errorf("%.60q: %.60q, want %.60q", test.log, got, test.want)
		}
	}
}
