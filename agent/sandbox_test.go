// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/agenttest"
	"github.com/cloister-cc/cloister/agent/netdev"
	"github.com/cloister-cc/cloister/agent/proc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bed is a sandbox with its stand-ins.
type bed struct {
	*agent.Sandbox
	images  agenttest.Images
	runtime agenttest.Runtime
	kernel  agenttest.Kernel
	network agenttest.Network
	cgroups agenttest.Cgroups
	dir     string
}

func newBed(t *testing.T, change ...func(*agent.Config)) *bed {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	reaper, err := proc.New(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reaper.Close() })
	b := &bed{dir: t.TempDir()}
	c := agent.Config{
		Images: &b.images, Runtime: &b.runtime, Kernel: &b.kernel, Network: &b.network, Reaper: reaper, Log: log,
		Cgroups: &b.cgroups, OOM: b.cgroups.OOM(),
		RunDir: filepath.Join(b.dir, "run"), ResolvConf: filepath.Join(b.dir, "resolv.conf"),
	}
	for _, f := range change {
		f(&c)
	}
	b.Sandbox, err = agent.NewSandbox(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.runtime.Hook, b.images.Hook, b.kernel.Hook, b.cgroups.Hook = nil, nil, nil, nil
		_ = b.Destroy(context.Background())
	})
	return b
}

// running returns a bed with a created sandbox.
func running(t *testing.T) *bed {
	t.Helper()
	return runningWith(t)
}

// runningWith does so with other parts.
func runningWith(t *testing.T, change ...func(*agent.Config)) *bed {
	t.Helper()
	b := newBed(t, change...)
	if err := b.Create(t.Context(), agent.SandboxConfig{ID: "pod", Hostname: "pod-1", DNS: []string{"nameserver 192.0.2.1"}}); err != nil {
		t.Fatal(err)
	}
	return b
}

func shell(script string) *specs.Process {
	return &specs.Process{Args: []string{"sh", "-c", script}, Cwd: "/"}
}

func config(id, script string) agent.ContainerConfig {
	return agent.ContainerConfig{
		ID:       id,
		Spec:     &specs.Spec{Process: shell(script)},
		Storages: []agent.Storage{{Driver: agent.DriverImageGuestPull, Source: "registry.example/app:1"}},
	}
}

// start creates and starts a container that runs a shell script.
func (b *bed) start(t *testing.T, id, script string) {
	t.Helper()
	if err := b.CreateContainer(t.Context(), config(id, script)); err != nil {
		t.Fatal(err)
	}
	if err := b.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// stdout reads a stream to its end.
func (b *bed) stdout(t *testing.T, id, execID string) string {
	t.Helper()
	var all strings.Builder
	for {
		data, err := b.ReadStdout(t.Context(), id, execID, 32768)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) == 0 {
			return all.String()
		}
		all.Write(data)
	}
}

func (b *bed) wantStatus(t *testing.T, id, execID string, want int) {
	t.Helper()
	if got, err := b.Wait(t.Context(), id, execID); err != nil || got != want {
		t.Errorf("status of %q/%q: %d, %v; want %d", id, execID, got, err, want)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

// wantEmpty checks that nothing is left of containers.
func (b *bed) wantEmpty(t *testing.T) {
	t.Helper()
	if left := b.runtime.Containers(); len(left) != 0 {
		t.Errorf("the runtime still has %v", left)
	}
	if left := b.images.Mounted(); len(left) != 0 {
		t.Errorf("still mounted: %v", left)
	}
	entries, err := os.ReadDir(filepath.Join(b.dir, "run"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "sandbox" && e.Name() != "shared" {
			t.Errorf("%s is left in the run folder", e.Name())
		}
	}
}

func TestNewSandboxWantsParts(t *testing.T) {
	if _, err := agent.NewSandbox(agent.Config{}); err == nil {
		t.Error("a sandbox of nothing")
	}
}

func TestCreateSandbox(t *testing.T) {
	b := newBed(t)
	resolv := filepath.Join(b.dir, "resolv.conf")
	if err := os.WriteFile(resolv, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shm := filepath.Join(b.dir, "run/sandbox/shm")
	err := b.Create(t.Context(), agent.SandboxConfig{
		ID: "pod", Hostname: "pod-1", DNS: []string{"search example", "nameserver 192.0.2.1"},
		Storages: []agent.Storage{{Driver: "ephemeral", FSType: "tmpfs", MountPoint: shm, Options: []string{"noexec", "size=1048576"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(b.dir, "run/sandbox/resolv.conf"))
	if err != nil || string(data) != "search example\nnameserver 192.0.2.1\n" {
		t.Errorf("resolv.conf: %q, %v", data, err)
	}
	mounts := b.kernel.Mounts()
	if len(mounts) != 2 || mounts[shm] != "tmpfs:shm" || !strings.HasPrefix(mounts[resolv], "bind:") {
		t.Errorf("mounts: %v", mounts)
	}
	wantErr(t, b.Create(t.Context(), agent.SandboxConfig{ID: "pod"}), agent.ErrState)
	if err := b.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	if mounts := b.kernel.Mounts(); len(mounts) != 0 {
		t.Errorf("mounts after Destroy: %v", mounts)
	}
}

func TestCreateSandboxRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		config agent.SandboxConfig
		want   error
	}{
		"id":         {agent.SandboxConfig{ID: "../x"}, agent.ErrInvalidContainerID},
		"host name":  {agent.SandboxConfig{ID: "pod", Hostname: "a\nb"}, agent.ErrInvalidArgument},
		"DNS lines":  {agent.SandboxConfig{ID: "pod", DNS: []string{"a\nb"}}, agent.ErrInvalidArgument},
		"long DNS":   {agent.SandboxConfig{ID: "pod", DNS: []string{strings.Repeat("a", 64<<10)}}, agent.ErrInvalidArgument},
		"storage":    {agent.SandboxConfig{ID: "pod", Storages: []agent.Storage{{Driver: "virtio-fs"}}}, agent.ErrUnsupported},
		"tmpfs over": {agent.SandboxConfig{ID: "pod", Storages: []agent.Storage{{Driver: "ephemeral", FSType: "tmpfs", MountPoint: "/etc"}}}, agent.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			wantErr(t, b.Create(t.Context(), test.config), test.want)
			if err := b.Create(t.Context(), agent.SandboxConfig{ID: "pod"}); err != nil {
				t.Errorf("a right one after that: %v", err)
			}
		})
	}
}

func TestCreateSandboxUndoes(t *testing.T) {
	b := newBed(t)
	boom := errors.New("boom")
	b.kernel.Hook = func(op, _ string) error {
		if op == "Namespaces" {
			return boom
		}
		return nil
	}
	c := agent.SandboxConfig{ID: "pod", DNS: []string{"x"}}
	wantErr(t, b.Create(t.Context(), c), boom)
	if m := b.kernel.Mounts(); len(m) != 0 {
		t.Errorf("mounts are left: %v", m)
	}
	b.kernel.Hook = nil
	if err := b.Create(t.Context(), c); err != nil {
		t.Errorf("second attempt: %v", err)
	}
}

func TestBeforeCreateAndAfterDestroy(t *testing.T) {
	b := newBed(t)
	wantErr(t, b.CreateContainer(t.Context(), config("c1", "true")), agent.ErrState)
	if err := b.UpdateInterface(t.Context(), netdev.Interface{}); err != nil {
		t.Errorf("network before Create: %v", err)
	}
	if _, err := b.UpdateRoutes(t.Context(), nil); err != nil {
		t.Errorf("routes before Create: %v", err)
	}
	for range 2 {
		if err := b.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	<-b.Done()
	wantErr(t, b.Create(t.Context(), agent.SandboxConfig{ID: "pod"}), agent.ErrState)
	wantErr(t, b.CreateContainer(t.Context(), config("c1", "true")), agent.ErrState)
	wantErr(t, b.UpdateInterface(t.Context(), netdev.Interface{}), agent.ErrState)
}

// Whatever blocks on a container must return when the sandbox is destroyed.
func TestDestroyWakesEverybody(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "trap '' TERM; sleep 1000")
	if err := b.Exec(t.Context(), "c1", "e1", shell("sleep 1000")); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	blocked := []func(context.Context) error{
		func(ctx context.Context) error { _, err := b.Wait(ctx, "c1", ""); return err },
		func(ctx context.Context) error { _, err := b.Wait(ctx, "c1", "e1"); return err },
		func(ctx context.Context) error { _, err := b.ReadStdout(ctx, "c1", "", 10); return err },
		func(ctx context.Context) error { _, err := b.ReadStdout(ctx, "c1", "", 10); return err },
		func(ctx context.Context) error { _, err := b.ReadStderr(ctx, "c1", "e1", 10); return err },
	}
	for _, call := range blocked {
		go func() { ended <- call(t.Context()) }()
	}
	time.Sleep(50 * time.Millisecond) // so that most of them do block; the test holds either way
	if err := b.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	for range blocked {
		if err := <-ended; err != nil && !errors.Is(err, agent.ErrInvalidContainerID) {
			t.Error(err)
		}
	}
	b.wantEmpty(t)
}

func TestDestroyEndsCreation(t *testing.T) {
	b := running(t)
	entered := make(chan struct{})
	ctx := t.Context()
	b.images.Hook = func(op, _ string) error {
		if op == "Mount" {
			close(entered)
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	}
	created := make(chan error)
	go func() { created <- b.CreateContainer(ctx, config("c1", "sleep 1000")) }()
	<-entered
	if err := b.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-created; err == nil {
		t.Error("the container was created in a sandbox that is destroyed")
	}
	b.wantEmpty(t)
}

// A Destroy whose caller has gone waits for the removal that is under way all the same.
func TestDestroyAwaitsRemoval(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	entered, release := make(chan struct{}), make(chan struct{})
	b.images.Hook = func(op, _ string) error {
		if op == "Unmount" {
			close(entered)
			<-release
		}
		return nil
	}
	removed, destroyed := make(chan error), make(chan error)
	go func() { removed <- b.RemoveContainer(t.Context(), "c1", time.Hour) }()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	go func() { destroyed <- b.Destroy(ctx) }()
	_, err := b.NextOOM(t.Context()) // which ends when Destroy has begun
	wantErr(t, err, agent.ErrState)
	close(release)
	if err := errors.Join(<-removed, <-destroyed); err != nil {
		t.Error(err)
	}
	b.wantEmpty(t)
}
