// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/cdi"
	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/agent/kernel"
	"github.com/cloister-cc/cloister/agent/oci"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/storage/share"
)

// pod is a sandbox with everything real but the images.
type pod struct {
	*agent.Sandbox
	runtime *Runtime
	reaper  *proc.Reaper
	images  binaryImages
	dir     string
}

// sharedFiles are the files from the host; they implement agent.Share.
type sharedFiles struct{ *share.Dir }

func (s sharedFiles) Copy(f agent.File) error       { return s.Dir.Copy(share.File(f)) }
func (sharedFiles) DropStale(context.Context) error { return nil }

func newPod(t *testing.T) *pod {
	t.Helper()
	return newPodWith(t, nil)
}

// newPodWith makes a pod of a configuration that change has seen.
func newPodWith(t *testing.T, change func(p *pod, c *agent.Config)) *pod {
	t.Helper()
	p := bareRuntimePod(t, change)
	if err := p.Create(t.Context(), agent.SandboxConfig{ID: "pod", Hostname: "pod-1", DNS: []string{"nameserver 192.0.2.1"}, GuestHookPath: "/hooks"}); err != nil {
		t.Fatal(err)
	}
	return p
}

// bareRuntimePod makes a pod whose sandbox has not been created.
func bareRuntimePod(t *testing.T, change func(p *pod, c *agent.Config)) *pod {
	t.Helper()
	p := &pod{images: newBinaryImages(t), dir: filepath.Join(t.TempDir(), "run")}
	p.runtime, p.reaper = realCrun(t)
	files, err := share.Open(filepath.Join(p.dir, oci.SharedDir), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	c := agent.Config{
		Images: p.images, Runtime: p.runtime, Kernel: kernel.Linux{}, Reaper: p.reaper, Log: log,
		Cgroups: cgroup.Hierarchy{}, OOM: watchOOM(t, log), Controllers: controllers(t), Share: sharedFiles{files},
		RunDir: p.dir, ResolvConf: filepath.Join(t.TempDir(), "none"),
	}
	if change != nil {
		change(p, &c)
	}
	if p.Sandbox, err = agent.NewSandbox(c); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	t.Cleanup(func() {
		if err := p.Destroy(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
		if mounted := p.images.mounted(); len(mounted) != 0 {
			t.Errorf("still mounted: %v", mounted)
		}
	})
	return p
}

// cdiDevices adds the devices that annotations name from a folder of CDI specs.
func cdiDevices(dir string) func(context.Context, *specs.Spec, map[string]string) error {
	return func(ctx context.Context, spec *specs.Spec, annotations map[string]string) error {
		return cdi.Inject(ctx, spec, annotations, []string{dir}, 0)
	}
}

// busybox is a container that runs a command line of busybox's shell.
func busybox(id, script string) agent.ContainerConfig {
	return agent.ContainerConfig{
		ID:       id,
		Spec:     &specs.Spec{Process: &specs.Process{Args: []string{"/busybox", "sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/"}}},
		Storages: []agent.Storage{{Driver: agent.DriverImageGuestPull, Source: busyboxImage}},
	}
}

// shell is a further process that runs a command line of busybox's shell.
func shell(script string) *specs.Process {
	return &specs.Process{Args: []string{"/busybox", "sh", "-c", script}, Cwd: "/"}
}

// run creates and starts a container.
func (p *pod) run(t *testing.T, c agent.ContainerConfig) {
	t.Helper()
	if err := p.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := p.StartContainer(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
}

// say reads some output, which must be there.
func (p *pod) say(t *testing.T, id, execID, want string) {
	t.Helper()
	got := ""
	for len(got) < len(want) {
		data, err := p.ReadStdout(t.Context(), id, execID, 4096)
		if err != nil || len(data) == 0 {
			t.Fatalf("%s/%s says %q, %v; want %q", id, execID, got, err, want)
		}
		got += string(data)
	}
	if got != want {
		t.Fatalf("%s/%s says %q, want %q", id, execID, got, want)
	}
}

// execShell runs a further process to its end and returns what it says.
func (p *pod) execShell(t *testing.T, id, execID, script string) string {
	t.Helper()
	if err := p.Exec(t.Context(), id, execID, shell(script)); err != nil {
		t.Fatal(err)
	}
	return p.output(t, id, execID)
}

// watchOOM returns nil where the kernel does not count memory.
func watchOOM(t *testing.T, log *slog.Logger) agent.OOM {
	t.Helper()
	if !slices.Contains(controllers(t), "memory") {
		return nil
	}
	watcher, err := cgroup.NewWatcher(cgroup.Hierarchy{}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := watcher.Close(); err != nil {
			t.Error(err)
		}
	})
	return watcher
}
