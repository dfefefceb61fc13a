// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/agent/netdev"
	"github.com/cloister-cc/cloister/client"
)

var _ Sandbox = (*agent.Sandbox)(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSandbox notes each call, does what on says, and answers err.
type fakeSandbox struct {
	on  func(ctx context.Context, call string) error
	out []byte
	mu  sync.Mutex
	got []string
}

func (f *fakeSandbox) call(ctx context.Context, format string, args ...any) error {
	call := fmt.Sprintf(format, args...)
	f.mu.Lock()
	f.got = append(f.got, call)
	f.mu.Unlock()
	if f.on == nil {
		return nil
	}
	return f.on(ctx, call)
}

func (f *fakeSandbox) calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.got)
}

func (f *fakeSandbox) Create(ctx context.Context, c agent.SandboxConfig) error {
	return f.call(ctx, "create sandbox %s %s %q %d %t %q", c.ID, c.Hostname, c.DNS, len(c.Storages), c.SharePIDNS, c.GuestHookPath)
}
func (f *fakeSandbox) Destroy(ctx context.Context) error { return f.call(ctx, "destroy") }
func (f *fakeSandbox) CreateContainer(ctx context.Context, c agent.ContainerConfig) error {
	return f.call(ctx, "create %s %q %t %+v", c.ID, c.Spec.Process.Args, c.SandboxPIDNS, c.Storages)
}

func (f *fakeSandbox) StartContainer(ctx context.Context, id string) error {
	return f.call(ctx, "start %s", id)
}

func (f *fakeSandbox) RemoveContainer(ctx context.Context, id string, timeout time.Duration) error {
	return f.call(ctx, "remove %s %s", id, timeout)
}

func (f *fakeSandbox) Exec(ctx context.Context, containerID, execID string, p *specs.Process) error {
	return f.call(ctx, "exec %s %s %q", containerID, execID, p.Args)
}

func (f *fakeSandbox) Signal(ctx context.Context, containerID, execID string, signal int) error {
	return f.call(ctx, "signal %s %q %d", containerID, execID, signal)
}

func (f *fakeSandbox) Wait(ctx context.Context, containerID, execID string) (int, error) {
	return 42, f.call(ctx, "wait %s %q", containerID, execID)
}

func (f *fakeSandbox) ReadStdout(ctx context.Context, containerID, execID string, limit int) ([]byte, error) {
	return f.out, f.call(ctx, "stdout %s %q %d", containerID, execID, limit)
}

func (f *fakeSandbox) ReadStderr(ctx context.Context, containerID, execID string, limit int) ([]byte, error) {
	return f.out, f.call(ctx, "stderr %s %q %d", containerID, execID, limit)
}

func (f *fakeSandbox) UpdateInterface(ctx context.Context, want netdev.Interface) error {
	return f.call(ctx, "interface %+v", want)
}

func (f *fakeSandbox) UpdateRoutes(ctx context.Context, want []netdev.Route) ([]netdev.Route, error) {
	return want, f.call(ctx, "routes %d", len(want))
}

func (f *fakeSandbox) PauseContainer(ctx context.Context, id string) error {
	return f.call(ctx, "pause %s", id)
}

func (f *fakeSandbox) ResumeContainer(ctx context.Context, id string) error {
	return f.call(ctx, "resume %s", id)
}

func (f *fakeSandbox) UpdateContainer(ctx context.Context, id string, r *specs.LinuxResources) error {
	if r == nil {
		return f.call(ctx, "update %s nothing", id)
	}
	return f.call(ctx, "update %s memory %d, %d devices", id, *r.Memory.Limit, len(r.Devices))
}

func (f *fakeSandbox) StatsContainer(ctx context.Context, id string) (*cgroup.Stats, error) {
	return &cgroup.Stats{
		CPU:     &cgroup.CPU{Usage: 3, User: 2, System: 1, Periods: 6, ThrottledPeriods: 5, ThrottledTime: 4},
		Memory:  &cgroup.Memory{Usage: cgroup.MemoryData{Usage: 1, Max: 2, Limit: 3, Failcnt: 4}, Cache: 5, Stats: map[string]uint64{"anon": 6}},
		Pids:    &cgroup.Pids{Current: 1, Limit: 2},
		IO:      []cgroup.IOEntry{{Major: 8, Minor: 1, Op: "read", Value: 9}},
		Hugetlb: map[string]cgroup.Hugetlb{"2MB": {Usage: 7, Failcnt: 8}},
	}, f.call(ctx, "stats %s", id)
}

func (f *fakeSandbox) WriteStdin(ctx context.Context, containerID, execID string, data []byte) error {
	return f.call(ctx, "stdin %s %q %q", containerID, execID, data)
}

func (f *fakeSandbox) CloseStdin(ctx context.Context, containerID, execID string) error {
	return f.call(ctx, "close stdin %s %q", containerID, execID)
}

func (f *fakeSandbox) ResizeTerminal(containerID, execID string, rows, columns int) error {
	return f.call(context.Background(), "resize %s %q %d %d", containerID, execID, rows, columns)
}

func (f *fakeSandbox) NextOOM(ctx context.Context) (string, error) { return "c9", f.call(ctx, "oom") }

func (f *fakeSandbox) CopyFile(ctx context.Context, c agent.File) error {
	return f.call(ctx, "copy %+v", c)
}

func (f *fakeSandbox) DropStaleMounts(ctx context.Context) { _ = f.call(ctx, "stale") }

func (f *fakeSandbox) UpdateEphemeralMounts(ctx context.Context, s []agent.Storage) error {
	return f.call(ctx, "ephemeral %d", len(s))
}

func (f *fakeSandbox) TerminationLog(ctx context.Context, id string) (string, error) {
	return "why", f.call(ctx, "termination log %s", id)
}

// fakeMachine notes its calls with those of a sandbox.
type fakeMachine struct{ f *fakeSandbox }

func (m fakeMachine) SetTime(sec, usec int64) error {
	return m.f.call(context.Background(), "time %d %d", sec, usec)
}

func (m fakeMachine) Reseed(data []byte) error {
	return m.f.call(context.Background(), "reseed %q", data)
}

func (fakeMachine) Details() agent.GuestDetails {
	return agent.GuestDetails{MemoryBlock: 1 << 27, MemoryProbe: true, Seccomp: true, StorageDrivers: []string{"image_guest_pull"}}
}

func (m fakeMachine) Metrics() (string, error) {
	return "metric 1\n", m.f.call(context.Background(), "metrics")
}

// rig is a real server on a unix socket.
type rig struct {
	server *Server
	client *client.Client
	raw    *ttrpc.Client
	path   string
	log    *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newRig(t *testing.T, sandbox *fakeSandbox, gate Gate) *rig {
	t.Helper()
	r := &rig{path: filepath.Join(t.TempDir(), "agent.sock"), log: &logBuffer{}}
	var err error
	r.server, err = NewServer(Config{
		Sandbox: sandbox, Machine: fakeMachine{sandbox}, Gate: gate, Log: slog.New(slog.NewTextHandler(r.log, nil)), Version: "1.2.3",
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen("unix://" + r.path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		_ = r.server.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	if r.client, err = client.Dial(t.Context(), "unix://"+r.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.client.Close() })
	r.raw = ttrpc.NewClient(r.dial(t))
	t.Cleanup(func() { _ = r.raw.Close() })
	return r
}

func (r *rig) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
