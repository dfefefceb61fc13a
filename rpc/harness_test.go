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
	return f.call(ctx, "create sandbox %s %s %q %d", c.ID, c.Hostname, c.DNS, len(c.Storages))
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

func newRig(t *testing.T, sandbox Sandbox, gate Gate) *rig {
	t.Helper()
	r := &rig{path: filepath.Join(t.TempDir(), "agent.sock"), log: &logBuffer{}}
	var err error
	r.server, err = NewServer(sandbox, gate, slog.New(slog.NewTextHandler(r.log, nil)), "1.2.3")
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
