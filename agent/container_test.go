// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/agenttest"
)

// config reads the spec that the OCI runtime gets of a container.
func (b *bed) config(t *testing.T, id string) *specs.Spec {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, "run", id, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	return &spec
}

func TestContainerLife(t *testing.T) {
	b := running(t)
	c := config("c1", "echo out; echo err >&2; exit 3")
	c.Spec.Linux = &specs.Linux{Sysctl: map[string]string{"net.ipv4.ip_forward": "1"}}
	if err := b.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := b.images.Mounted()["c1"]; got != "registry.example/app:1" {
		t.Errorf("image %q", got)
	}
	if got := b.kernel.Sysctls()["net.ipv4.ip_forward"]; got != "1" {
		t.Errorf("sysctl %q", got)
	}
	spec := b.config(t, "c1")
	if spec.Root.Path != filepath.Join(b.dir, "run/c1/rootfs") || len(spec.Linux.Namespaces) != 5 {
		t.Errorf("config.json: %+v", spec)
	}
	for _, ns := range spec.Linux.Namespaces {
		joins := ns.Type == specs.IPCNamespace || ns.Type == specs.UTSNamespace
		if joins != strings.HasPrefix(ns.Path, fmt.Sprintf("/proc/%d/fd/", os.Getpid())) {
			t.Errorf("%s namespace has the path %q", ns.Type, ns.Path)
		}
	}
	wantErr(t, b.Exec(t.Context(), "c1", "e1", shell("true")), agent.ErrState)
	if err := b.StartContainer(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.StartContainer(t.Context(), "c1"), agent.ErrState)
	if out := b.stdout(t, "c1", ""); out != "out\n" {
		t.Errorf("standard output %q", out)
	}
	if data, err := b.ReadStderr(t.Context(), "c1", "c1", 2); err != nil || string(data) != "er" {
		t.Errorf("standard error %q, %v", data, err)
	}
	for range 2 {
		b.wantStatus(t, "c1", "", 3)
		b.wantStatus(t, "c1", "c1", 3)
	}
	wantErr(t, b.Exec(t.Context(), "c1", "e1", shell("true")), agent.ErrState)
	for _, sig := range []int{9, 15, 1} {
		if err := b.Signal(t.Context(), "c1", "", sig); err != nil {
			t.Errorf("signal %d after the exit: %v", sig, err)
		}
	}
	if err := b.RemoveContainer(t.Context(), "c1", 0); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.RemoveContainer(t.Context(), "c1", 0), agent.ErrInvalidContainerID)
	b.wantEmpty(t)
}

// A cluster limits every size of huge pages that its node has; the guest may have others, for which the OCI runtime would
// find no file.
func TestHugePagesOfTheHost(t *testing.T) {
	b := runningWith(t, func(c *agent.Config) { c.HugePages = []string{"2MB"} })
	limits := &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "1GB"}, {Pagesize: "2MB"}}}
	c := config("c1", "sleep 1000")
	c.Spec.Linux = &specs.Linux{Resources: limits}
	if err := b.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := b.UpdateContainer(t.Context(), "c1", limits); err != nil {
		t.Fatal(err)
	}
	for what, got := range map[string]*specs.LinuxResources{
		"config.json": b.config(t, "c1").Linux.Resources, "update": b.runtime.Resources("c1"),
	} {
		if len(got.HugepageLimits) != 1 || got.HugepageLimits[0].Pagesize != "2MB" {
			t.Errorf("%s: limits of huge pages %+v, want that of 2MB alone", what, got.HugepageLimits)
		}
	}
}

func TestUnknown(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	ctx := t.Context()
	for _, test := range []struct {
		container, exec string
		want            error
	}{
		{"none", "", agent.ErrInvalidContainerID},
		{"c1", "none", agent.ErrProcessNotFound},
		{"", "", agent.ErrInvalidContainerID},
	} {
		_, err := b.Wait(ctx, test.container, test.exec)
		wantErr(t, err, test.want)
		_, err = b.ReadStdout(ctx, test.container, test.exec, 10)
		wantErr(t, err, test.want)
		_, err = b.ReadStderr(ctx, test.container, test.exec, 10)
		wantErr(t, err, test.want)
		wantErr(t, b.Signal(ctx, test.container, test.exec, 15), test.want)
	}
	wantErr(t, b.StartContainer(ctx, "none"), agent.ErrInvalidContainerID)
	wantErr(t, b.RemoveContainer(ctx, "none", 0), agent.ErrInvalidContainerID)
	wantErr(t, b.Exec(ctx, "none", "e1", shell("true")), agent.ErrInvalidContainerID)
	wantErr(t, b.Signal(ctx, "c1", "", 65), agent.ErrInvalidArgument)
	wantErr(t, b.Signal(ctx, "c1", "", -1), agent.ErrInvalidArgument)
	_, err := b.ReadStdout(ctx, "c1", "", 0)
	wantErr(t, err, agent.ErrInvalidArgument)
}

func TestCreateContainerRefuses(t *testing.T) {
	pull := agent.DriverImageGuestPull
	for name, test := range map[string]struct {
		spoil func(c *agent.ContainerConfig)
		want  error
		text  string
	}{
		"id out of the folder": {func(c *agent.ContainerConfig) { c.ID = "../../x" }, agent.ErrInvalidContainerID, ""},
		"id of one character":  {func(c *agent.ContainerConfig) { c.ID = "x" }, agent.ErrInvalidContainerID, ""},
		"id like an option":    {func(c *agent.ContainerConfig) { c.ID = "--root" }, agent.ErrInvalidContainerID, ""},
		"id of a folder":       {func(c *agent.ContainerConfig) { c.ID = "sandbox" }, agent.ErrInvalidContainerID, ""},
		"id taken":             {func(c *agent.ContainerConfig) { c.ID = "other" }, agent.ErrAlreadyExists, ""},
		"long id":              {func(c *agent.ContainerConfig) { c.ID = strings.Repeat("a", 129) }, agent.ErrInvalidContainerID, ""},
		"no spec":              {func(c *agent.ContainerConfig) { c.Spec = nil }, agent.ErrInvalidArgument, ""},
		"hostile spec": {func(c *agent.ContainerConfig) {
			c.Spec.Mounts = []specs.Mount{{Destination: "/x", Type: "bind", Source: "/"}}
		}, agent.ErrInvalidArgument, `source "/"`},
		"cgroup of another": {func(c *agent.ContainerConfig) {
			c.Spec.Linux = &specs.Linux{CgroupsPath: "/containers"}
		}, agent.ErrInvalidArgument, "overlaps"},
		"no storage":    {func(c *agent.ContainerConfig) { c.Storages = nil }, agent.ErrInvalidArgument, "exactly one"},
		"two images":    {func(c *agent.ContainerConfig) { c.Storages = append(c.Storages, c.Storages...) }, agent.ErrInvalidArgument, "exactly one"},
		"no image":      {func(c *agent.ContainerConfig) { c.Storages[0].Source = "" }, agent.ErrInvalidArgument, "no image"},
		"other driver":  {func(c *agent.ContainerConfig) { c.Storages = append(c.Storages, agent.Storage{Driver: "blk"}) }, agent.ErrUnsupported, `"blk"`},
		"other option":  {func(c *agent.ContainerConfig) { c.Storages[0].DriverOptions = []string{"x"} }, agent.ErrUnsupported, `"x"`},
		"broken option": {func(c *agent.ContainerConfig) { c.Storages[0].DriverOptions = []string{pull + "={"} }, agent.ErrInvalidArgument, ""},
		"long option": {func(c *agent.ContainerConfig) {
			c.Storages[0].DriverOptions = []string{pull + "=" + strings.Repeat(" ", 64<<10) + "{}"}
		}, agent.ErrInvalidArgument, "longer"},
	} {
		t.Run(name, func(t *testing.T) {
			b := running(t)
			if err := b.CreateContainer(t.Context(), config("other", "true")); err != nil {
				t.Fatal(err)
			}
			b.images.Hook = func(op, _ string) error {
				t.Errorf("%s was called", op)
				return nil
			}
			c := config("c1", "true")
			test.spoil(&c)
			err := b.CreateContainer(t.Context(), c)
			wantErr(t, err, test.want)
			if err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v does not name %q", err, test.text)
			}
			b.images.Hook = nil
			if err := b.CreateContainer(t.Context(), config("c1", "true")); err != nil {
				t.Errorf("a right one after that: %v", err)
			}
		})
	}
}

func TestPause(t *testing.T) {
	for _, mark := range []string{"io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"} {
		b := running(t)
		c := config("pod", "exit 77")
		c.Storages[0] = agent.Storage{
			Driver: agent.DriverImageGuestPull, Source: "pause",
			DriverOptions: []string{agent.DriverImageGuestPull + `={"metadata":{"` + mark + `":"sandbox"}}`},
		}
		if err := b.CreateContainer(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if got := b.images.Mounted()["pod"]; got != agenttest.PauseReference {
			t.Errorf("image %q", got)
		}
		if err := b.StartContainer(t.Context(), "pod"); err != nil {
			t.Fatal(err)
		}
		// It runs the built-in process, which sleeps and does not catch SIGTERM, not the one of the spec.
		if err := b.Signal(t.Context(), "pod", "", 15); err != nil {
			t.Fatal(err)
		}
		b.wantStatus(t, "pod", "", 128+9)
	}
}

func TestSharedPIDNamespace(t *testing.T) {
	b := running(t)
	c := config("c2", "sleep 1000")
	c.SandboxPIDNS = true
	wantErr(t, b.CreateContainer(t.Context(), c), agent.ErrState)
	b.start(t, "c1", "sleep 1000")
	if err := b.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, ns := range b.config(t, "c2").Linux.Namespaces {
		if ns.Type == specs.PIDNamespace {
			got, err := os.Readlink(ns.Path)
			want, werr := os.Readlink("/proc/self/ns/pid") // where the stand-in runs its containers
			if err != nil || werr != nil || got != want {
				t.Errorf("PID namespace %q (%q, %v), want %q", ns.Path, got, err, want)
			}
		}
	}
}

// Each failing step must be undone without a trace, and the id be free again.
func TestCreateContainerUndoes(t *testing.T) {
	boom := errors.New("boom")
	for _, step := range []string{"images Mount", "kernel SetSysctl", "runtime Create"} {
		t.Run(step, func(t *testing.T) {
			b := running(t)
			fail := func(part string) agenttest.Hook {
				return func(op, _ string) error {
					if part+" "+op == step {
						return boom
					}
					return nil
				}
			}
			b.images.Hook, b.kernel.Hook, b.runtime.Hook = fail("images"), fail("kernel"), fail("runtime")
			c := config("c1", "true")
			c.Spec.Linux = &specs.Linux{Sysctl: map[string]string{"net.a": "1"}}
			wantErr(t, b.CreateContainer(t.Context(), c), boom)
			b.wantEmpty(t)
			b.images.Hook, b.kernel.Hook, b.runtime.Hook = nil, nil, nil
			if err := b.CreateContainer(t.Context(), c); err != nil {
				t.Errorf("second attempt: %v", err)
			}
		})
	}
}

func TestFailedUndoTaints(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	boom := errors.New("boom")
	b.runtime.Hook = func(op, id string) error {
		if op == "Create" && id == "c2" {
			return boom
		}
		return nil
	}
	b.images.Hook = func(op, id string) error {
		if op == "Unmount" && id == "c2" {
			return errors.New("busy")
		}
		return nil
	}
	ctx := t.Context()
	err := b.CreateContainer(ctx, config("c2", "true"))
	wantErr(t, err, boom)
	if !strings.Contains(fmt.Sprint(err), "busy") {
		t.Errorf("the error does not tell of the undo: %v", err)
	}
	wantErr(t, b.CreateContainer(ctx, config("c3", "true")), agent.ErrTainted)
	wantErr(t, b.StartContainer(ctx, "c1"), agent.ErrTainted)
	wantErr(t, b.Exec(ctx, "c1", "e1", shell("true")), agent.ErrTainted)
	_, err = b.UpdateRoutes(ctx, nil)
	wantErr(t, err, agent.ErrTainted)
	if err := b.Signal(ctx, "c1", "", 9); err != nil {
		t.Error(err)
	}
	b.wantStatus(t, "c1", "", 128+9)
	if err := b.RemoveContainer(ctx, "c1", 0); err != nil {
		t.Error(err)
	}
	if err := b.Destroy(ctx); err != nil {
		t.Error(err)
	}
}

func TestFailedRemoveCanBeRepeated(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	boom := errors.New("boom")
	b.images.Hook = func(op, _ string) error {
		if op == "Unmount" {
			return boom
		}
		return nil
	}
	wantErr(t, b.RemoveContainer(t.Context(), "c1", 0), boom)
	wantErr(t, b.Exec(t.Context(), "c1", "e1", shell("true")), agent.ErrState)
	b.wantStatus(t, "c1", "", 128+9)
	b.images.Hook = nil
	if err := b.RemoveContainer(t.Context(), "c1", 0); err != nil {
		t.Error(err)
	}
	b.wantEmpty(t)
}

func TestFailedStart(t *testing.T) {
	b := running(t)
	if err := b.CreateContainer(t.Context(), config("c1", "true")); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	b.runtime.Hook = func(op, _ string) error {
		if op == "Start" {
			return boom
		}
		return nil
	}
	wantErr(t, b.StartContainer(t.Context(), "c1"), boom)
	b.runtime.Hook = nil
	wantErr(t, b.StartContainer(t.Context(), "c1"), agent.ErrState)
	if err := b.RemoveContainer(t.Context(), "c1", 0); err != nil {
		t.Error(err)
	}
}
