// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cdi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const gpus = `
cdiVersion: "0.6.0"
kind: "example.com/gpu"
containerEdits:
  env: ["GPU=yes"]
devices:
- name: "0"
  containerEdits:
    deviceNodes: [{path: "/dev/gpu0", type: "c", major: 195, minor: 0}]
    mounts: [{hostPath: "/usr/lib/gpu", containerPath: "/a", options: ["ro", "bind"]}]
    hooks: [{hookName: "createContainer", path: "/usr/bin/gpu-hook", args: ["gpu-hook"]}]
- name: "all"
  containerEdits:
    deviceNodes: [{path: "/dev/gpuctl", type: "c", major: 195, minor: 255}]
- name: "waits"
  containerEdits:
    deviceNodes: [{path: "/dev/not-there-yet"}]
`

func describe(t *testing.T, dir, name, text string) {
	t.Helper()
	// In place at once: what reads the folder meanwhile must not see half of it.
	whole := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(whole, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(whole, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func spec() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Args: []string{"/app"}, Env: []string{"A=b"}},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}},
	}
}

func TestInject(t *testing.T) {
	dir := t.TempDir()
	describe(t, dir, "gpu.yaml", gpus)
	describe(t, dir, "broken.yaml", "kind: {")
	got := spec()
	annotations := map[string]string{"cdi.k8s.io/a": "example.com/gpu=0", "cdi.k8s.io/b": "example.com/gpu=0,example.com/gpu=all", "other": "example.com/gpu=9"}
	if err := Inject(t.Context(), got, annotations, []string{dir}, 0); err != nil {
		t.Fatal(err)
	}
	rule := func(minor int64) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: new(int64(195)), Minor: &minor, Access: "rwm"}
	}
	want := spec()
	want.Process.Env = append(want.Process.Env, "GPU=yes")
	want.Mounts = []specs.Mount{{Destination: "/a", Source: "/usr/lib/gpu", Options: []string{"ro", "bind"}}}
	want.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/usr/bin/gpu-hook", Args: []string{"gpu-hook"}}}}
	want.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/gpu0", Type: "c", Major: 195, Minor: 0}, {Path: "/dev/gpuctl", Type: "c", Major: 195, Minor: 255},
	}
	want.Linux.Resources.Devices = append(want.Linux.Resources.Devices, rule(0), rule(255))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestInjectNothing(t *testing.T) {
	got := spec()
	// A folder that cannot be a folder would be an error if it were read.
	if err := Inject(t.Context(), got, map[string]string{"io.kubernetes.x": "example.com/gpu=0"}, []string{"\x00"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(spec(), got); diff != "" {
		t.Error(diff)
	}
}

// A device that is described later is waited for.
func TestInjectWaits(t *testing.T) {
	dir := t.TempDir()
	result := make(chan error, 1)
	got := spec()
	go func() {
		result <- InjectNamed(t.Context(), got, []string{"example.com/gpu=all"}, []string{dir}, time.Hour)
	}()
	describe(t, dir, "gpu.yaml", gpus)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if len(got.Linux.Devices) != 1 {
		t.Errorf("devices %v", got.Linux.Devices)
	}
}

func TestInjectFails(t *testing.T) {
	dir := t.TempDir()
	describe(t, dir, "gpu.yaml", gpus)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx     context.Context
		device  string
		timeout time.Duration
		want    error
		text    string
	}{
		"not of this kind": {t.Context(), "example.com/gpu=9", time.Hour, nil, "do not exist"},
		"no such kind":     {t.Context(), "example.com/nic=0", 0, context.DeadlineExceeded, "unresolvable"},
		"no node":          {t.Context(), "example.com/gpu=waits", 0, context.DeadlineExceeded, "not-there-yet"},
		"canceled":         {canceled, "example.com/nic=0", time.Hour, context.Canceled, "example.com/nic=0"},
		"no name":          {t.Context(), "gpu0", time.Hour, nil, "invalid CDI device name"},
		"empty":            {t.Context(), "", time.Hour, nil, "invalid CDI device name"},
		"long":             {t.Context(), "example.com/gpu=" + strings.Repeat("a", maxName), time.Hour, nil, "longer"},
	} {
		got := spec()
		err := Inject(test.ctx, got, map[string]string{"cdi.k8s.io/x": test.device}, []string{dir}, test.timeout)
		if err == nil || !strings.Contains(err.Error(), test.text) || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: error %v, want one with %q, %v", name, err, test.text, test.want)
		}
		if diff := cmp.Diff(spec(), got); diff != "" {
			t.Errorf("%s: the spec was changed:\n%s", name, diff)
		}
	}
	names := make([]string, 0, maxDevices+1)
	for i := range maxDevices + 1 {
		names = append(names, "example.com/gpu="+strings.Repeat("a", i+1))
	}
	if err := InjectNamed(t.Context(), spec(), names, []string{dir}, time.Hour); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too many devices: %v", err)
	}
}

func TestVisible(t *testing.T) {
	for _, test := range []struct {
		value string
		want  []string
		err   string
	}{
		{"", nil, ""},
		{" none ", nil, ""},
		{"void", nil, ""},
		{"nvidia.com/gpu=1,0, 1:nvidia.com/ib = all", []string{"nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/ib=all"}, ""},
		{"nvidia.com/gpu=007", []string{"nvidia.com/gpu=7"}, ""},
		{"all", nil, "KIND=DEVICES"},
		{"nvidia.com/gpu=0:", nil, "KIND=DEVICES"},
		{"=0", nil, "not the name"},
		{"gpu=0", nil, "not the name"},
		{"nvidia.com/gpu=", nil, "are numbers"},
		{"nvidia.com/gpu=-1", nil, "are numbers"},
		{"nvidia.com/gpu=4294967296", nil, "are numbers"},
		{"nvidia.com/gpu=all,0", nil, "are numbers"},
	} {
		got, err := Visible([]string{"A=b", visible + "=" + test.value})
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) || !slices.Equal(got, test.want) {
			t.Errorf("%q: %q, %v; want %q, %q", test.value, got, err, test.want, test.err)
		}
	}
	if got, err := Visible([]string{"X_" + visible + "=junk"}); got != nil || err != nil {
		t.Errorf("without the variable: %q, %v", got, err)
	}
}

// The host writes annotations and environment.
func FuzzNames(f *testing.F) {
	f.Add("example.com/gpu=0,example.com/gpu=all")
	f.Add("nvidia.com/gpu=0,1:nvidia.com/ib=all")
	f.Fuzz(func(t *testing.T, text string) {
		annotated, err := Annotated(map[string]string{"cdi.k8s.io/x": text})
		if err == nil && len(annotated) == 0 {
			t.Error("an annotation names no device")
		}
		visible, _ := Visible([]string{visible + "=" + text})
		for _, name := range slices.Concat(annotated, visible) {
			if strings.ContainsAny(name, "/ ") && strings.Count(name, "/") != 1 || strings.ContainsAny(name, "\x00 \n,") || len(name) > maxName {
				t.Errorf("name %q", name)
			}
		}
	})
}
