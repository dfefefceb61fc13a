// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/agenttest"
	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/rpc"
)

// guest is a sandbox that notes what it is asked, and whose one process says what it is told until its input ends.
type guest struct {
	rpc.Sandbox
	output chan []byte

	mu   sync.Mutex
	got  []string
	over bool
}

func newGuest() *guest { return &guest{output: make(chan []byte, 100)} }

func (g *guest) note(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.got = append(g.got, fmt.Sprintf(format, args...))
}

func (g *guest) calls() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.got)
}

func (g *guest) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		g.over = true
		close(g.output)
	}
}

func (g *guest) Create(_ context.Context, c agent.SandboxConfig) error {
	g.note("sandbox %s %t", c.ID, c.SharePIDNS)
	return nil
}

func (g *guest) CreateContainer(_ context.Context, c agent.ContainerConfig) error {
	m := c.Spec.Mounts[len(c.Spec.Mounts)-1]
	g.note("create %s %s %t %s:%s:%s %s", c.ID, c.Storages[0].Source, c.Spec.Process.Terminal, m.Source, m.Destination,
		m.Options[len(m.Options)-1], c.Spec.Annotations["a"])
	return nil
}

func (g *guest) Exec(_ context.Context, id, _ string, p *specs.Process) error {
	g.note("exec %s %q %t %v", id, p.Args, p.Terminal, p.ConsoleSize)
	return nil
}

func (g *guest) ResizeTerminal(_, _ string, rows, columns int) error {
	g.note("resize %d %d", rows, columns)
	return nil
}

// WriteStdin has the process say the data, and Ctrl-D end it.
func (g *guest) WriteStdin(_ context.Context, _, _ string, data []byte) error {
	text, _, eof := bytes.Cut(data, []byte{4})
	g.output <- slices.Clone(text)
	if eof {
		g.end()
	}
	return nil
}

func (g *guest) CloseStdin(context.Context, string, string) error {
	g.end()
	return nil
}

func (g *guest) ReadStdout(ctx context.Context, _, _ string, _ int) ([]byte, error) {
	for {
		select {
		case data, ok := <-g.output:
			if len(data) > 0 || !ok {
				return data, nil
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (g *guest) ReadStderr(context.Context, string, string, int) ([]byte, error) { return nil, nil }
func (g *guest) Wait(context.Context, string, string) (int, error)               { return 3, nil }

func (g *guest) PauseContainer(_ context.Context, id string) error {
	g.note("pause %s", id)
	return nil
}

func (g *guest) ResumeContainer(_ context.Context, id string) error {
	g.note("resume %s", id)
	return nil
}

func (g *guest) UpdateContainer(_ context.Context, id string, r *specs.LinuxResources) error {
	g.note("update %s %d %d %d %d %d", id, *r.Memory.Limit, *r.CPU.Quota, *r.CPU.Period, *r.CPU.Shares, *r.Pids.Limit)
	return nil
}

func (g *guest) StatsContainer(_ context.Context, id string) (*cgroup.Stats, error) {
	if id == "c2" {
		return &cgroup.Stats{}, nil
	}
	return &cgroup.Stats{
		CPU:    &cgroup.CPU{Usage: 1_234_567_890},
		Memory: &cgroup.Memory{Usage: cgroup.MemoryData{Usage: 12 << 20, Max: 20 << 20, Limit: math.MaxUint64}},
		Pids:   &cgroup.Pids{Current: 2, Limit: 100},
		IO:     []cgroup.IOEntry{{Op: "read", Value: 1024}, {Op: "read", Value: 1024}, {Op: "write", Value: 7}, {Op: "rios", Value: 99}},
	}, nil
}

func (g *guest) NextOOM(context.Context) (string, error) { return "c1", nil }
func (g *guest) CopyFile(_ context.Context, f agent.File) error {
	g.note("copy %s %q", f.Path, f.Data)
	return nil
}

func (g *guest) TerminationLog(_ context.Context, id string) (string, error) {
	if id == "c2" {
		return "", nil
	}
	return "it was full\n", nil
}

// measured is a machine with a metric.
type measured struct{ agenttest.Machine }

func (measured) Metrics() (string, error) { return "# HELP x y\nx 1\n", nil }

const statsTable = `CONTAINER  CPU TIME  MEMORY    LIMIT  PEAK      PIDS      READ     WRITTEN
c1         1.235s    12.0 MiB  none   20.0 MiB  2 of 100  2.0 KiB  7 B
c2         -         -         -      -         -         -        -
`

func TestCtlRunning(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "motd")
	if err := os.WriteFile(file, []byte("hi"), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]struct {
		code      int
		out, call string
	}{
		"pause c1":              {call: "pause c1"},
		"resume --json c1":      {out: "{}\n", call: "resume c1"},
		"stats c1 c2":           {out: statsTable},
		"stats c2 --json":       {out: `"cgroup_stats":`},
		"oom":                   {out: "c1\n"},
		"oom --json":            {out: `"container_id":`},
		"metrics":               {out: "# HELP x y\nx 1\n"},
		"metrics --json":        {out: `"metrics":`},
		"termination-log c1":    {out: "it was full\n"},
		"termination-log c2":    {},
		"copy " + file + " a/b": {out: "/run/kata-containers/shared/containers/a/b: 1 files, 0 folders, 0 links, 2 B\n", call: `copy /run/kata-containers/shared/containers/a/b "hi"`},
		"copy --json . self":    {out: `"path":"/run/kata-containers/shared/containers/self","files":`},
		"update --memory 64M --cpu-quota 5 --cpu-period 6 --cpu-shares 7 --pids 8 c1": {call: "update c1 67108864 5 6 7 8"},
		"create-sandbox --share-pid pod":                                              {call: "sandbox pod true"},
		"create-container --pause pod":                                                {call: "create pod pause false sysfs:/sys:ro "},
		"create-container -t --mount m:/etc/m:ro --annotation a=b=c c1 i -- sh":       {call: "create c1 i true /run/kata-containers/shared/containers/m:/etc/m:ro b=c"},
		"create-container --mount /abs:/m c1 i -- sh":                                 {call: "create c1 i false /abs:/m:rw "},

		// With standard input, which is no terminal here.
		"exec -i c1 -- cat":                                 {code: 3, out: "typed", call: `exec c1 ["cat"] false <nil>`},
		"exec -t c1 -- sh":                                  {code: 3, call: `exec c1 ["sh"] true <nil>`},
		"attach -i c1":                                      {code: 3, out: "typed"},
		"exec -it c1 -- sh":                                 {code: exitUsage, out: "standard input is no terminal: leave out --tty"},
		"attach -it c1":                                     {code: exitUsage, out: "standard input is no terminal"},
		"run -it i -- sh":                                   {code: exitUsage, out: "standard input is no terminal"},
		"update c1":                                         {code: exitUsage, out: "nothing to change"},
		"update --memory 0 c1":                              {code: exitUsage, out: "--memory: \"0\" is neither a size"},
		"update --pids -2 c1":                               {code: exitUsage, out: "can be -1 only"},
		"copy x ../y":                                       {code: exitUsage, out: "no name for a file in the guest"},
		"create-container --pause pod i -- x":               {code: exitUsage, out: "accepts 1 arg(s)"},
		"create-container --mount m c1 i -- sh":             {code: exitUsage, out: "--mount is not SOURCE:DESTINATION[:ro]"},
		"create-container --mount ../m:/m c1 i -- sh":       {code: exitUsage, out: "no name for a file"},
		"create-container --annotation x c1 i -- sh":        {code: exitUsage, out: "--annotation is not NAME=VALUE"},
		"logs --address nonsense":                           {code: exitUsage, out: "use hvsock://"},
		"console --wait 1ns --address unix:///no/such/file": {code: exitFailure, out: "port 1026 of the guest at unix:///no/such/file is not ready"},
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			g := newGuest()
			if strings.HasPrefix(line, "exec -t") {
				g.end()
			}
			args := append([]string{"ctl", "--address", serve(t, g, measured{}, rpc.AllowAll)}, strings.Fields(line)...)
			out, err := execute(t, strings.NewReader("typed"), args...)
			if got := exitCode(err); got != want.code {
				t.Errorf("exit code %d (%v), want %d", got, err, want.code)
			}
			if err != nil {
				out += err.Error()
			}
			if !strings.Contains(out, want.out) || want.out == "" && out != "" && want.code == 0 {
				t.Errorf("printed %q, want %q", out, want.out)
			}
			if want.call != "" && !slices.Contains(g.calls(), want.call) {
				t.Errorf("calls %q, want %q", g.calls(), want.call)
			}
		})
	}
}

// TestCtlPorts reads a log and talks to a console, whose sockets are plain ones.
func TestCtlPorts(t *testing.T) {
	t.Parallel()
	log := "unix://" + servePort(t, func(conn net.Conn) { fmt.Fprintln(conn, `{"ts":"t","level":"INFO","msg":"hello","k":"v"}`) })
	if out, err := execute(t, nil, "ctl", "logs", "--address", log); err != nil || out != "t INFO hello k=v\n" {
		t.Errorf("logs: %q, %v", out, err)
	}
	if out, err := execute(t, nil, "ctl", "logs", "--json", "--address", log); err != nil || !strings.HasPrefix(out, `{"ts":"t"`) {
		t.Errorf("logs as JSON: %q, %v", out, err)
	}
	console := "unix://" + servePort(t, func(conn net.Conn) {
		typed, _ := bufio.NewReader(conn).ReadString(4)
		fmt.Fprintf(conn, "got %q", typed)
	})
	if out, err := execute(t, strings.NewReader("id\n"), "ctl", "console", "--address", console); err != nil || out != `got "id\n\x04"` {
		t.Errorf("console: %q, %v", out, err)
	}
	_, err := execute(t, nil, "ctl", "logs", "--wait", "1ns", "--address", "unix:///no/such/file")
	var shown bytes.Buffer
	report(&shown, err)
	if !strings.Contains(shown.String(), "hint: was the guest built with --log-port 1025?") {
		t.Errorf("reported %q", &shown)
	}
}

// TestCtlLogsInterrupted: Ctrl-C is the way to leave the log, and no failure.
func TestCtlLogsInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	path := servePort(t, func(conn net.Conn) {
		cancel()
		_, _ = conn.Read(make([]byte, 1)) // until the other side has gone
	})
	root := newRootCommand()
	root.SetArgs([]string{"ctl", "logs", "--address", "unix://" + path})
	root.SetOut(&bytes.Buffer{})
	// The dial may see the interrupt first.
	if err := root.ExecuteContext(ctx); err != nil && !strings.Contains(err.Error(), "canceled") {
		t.Error(err)
	}
}

// servePort serves one connection after another on a socket.
func servePort(t *testing.T, talk func(net.Conn)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			talk(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return path
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int64{
		"1": 1, "4096": 4096, "64M": 64 << 20, "64Mi": 64 << 20, "64MiB": 64 << 20, "2K": 2048, "3G": 3 << 30, "1T": 1 << 40, "max": -1,
		"": 0, "0": 0, "-1": 0, "M": 0, "64m": 0, "64MB": 0, "1iB": 0, "1i": 0, " 1": 0, "9223372036854775807": math.MaxInt64,
		"9223372036854775808": 0, "8388608T": 0, "8388607T": 8388607 << 40, "1.5G": 0,
	} {
		if got, err := parseSize(s); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
}
