// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/oci"
	"github.com/cloister-cc/cloister/agent/proc"
)

// bundle makes a bundle whose root file system holds this test binary.
func bundle(t *testing.T, id string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "rootfs")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := copyProgram(program(), filepath.Join(root, "program")); err != nil {
		t.Fatal(err)
	}
	result, err := oci.Convert(&specs.Spec{
		Process:  &specs.Process{Args: append([]string{"/program", inContainer}, args...), Cwd: "/"},
		Hostname: "inside",
		Linux:    &specs.Linux{Resources: &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(100))}}},
	}, oci.Options{ID: id, RunDir: dir, Rootfs: root, Controllers: controllers(t)})
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(result.Spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCrun(t *testing.T) {
	r, reaper := realCrun(t)
	ctx := t.Context()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	adopt := func(started agent.Started, err error) *proc.Process {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		p, err := reaper.Adopt(started.PID)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	io := agent.Stdio{Stdin: null, Stdout: in, Stderr: in}
	init := adopt(r.Create(ctx, "c1", bundle(t, "c1", "serve"), io))
	t.Cleanup(func() { _ = r.Delete(context.WithoutCancel(ctx), "c1") })
	if err := r.Start(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	wantLine(t, out, "serving\n")
	exec := adopt(r.Exec(ctx, "c1", &specs.Process{Args: []string{"/program", inContainer, "tell"}, Cwd: "/", Env: []string{"TOKEN=x"}}, io))
	<-exec.Done()
	if status, err := exec.Status(); err != nil || status != 5 {
		t.Errorf("exec: status %d, %v", status, err)
	}
	told := parseTold(readLine(t, out))
	if told["host"] != "inside" || told["token"] != "x" || told["number"] == strconv.Itoa(exec.PID()) {
		t.Errorf("the process in the container says %v", told)
	}
	if _, err := r.Exec(ctx, "c1", &specs.Process{Args: []string{"/none"}, Cwd: "/"}, io); err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("exec of a missing program: %v", err)
	}
	if handles, err := init.Handles(unix.SIGTERM); err != nil || !handles {
		t.Errorf("init handles SIGTERM: %t, %v", handles, err)
	}
	if err := init.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-init.Done()
	if status, err := init.Status(); err != nil || status != 3 {
		t.Errorf("init: status %d, %v", status, err)
	}
	for range 2 {
		if err := r.Delete(ctx, "c1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/containers/c1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cgroup is left: %v", err)
	}
}

func TestCrunKillsAndDeletes(t *testing.T) {
	r, reaper := realCrun(t)
	ctx := t.Context()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	io := agent.Stdio{Stdin: null, Stdout: null, Stderr: null}
	for name, end := range map[string]func(*proc.Process) error{
		"kill":          func(p *proc.Process) error { return p.Signal(unix.SIGKILL) },
		"forced-delete": func(*proc.Process) error { return r.Delete(ctx, "c2") },
	} {
		started, err := r.Create(ctx, "c2", bundle(t, "c2", "serve"), io)
		if err != nil {
			t.Fatal(err)
		}
		p, err := reaper.Adopt(started.PID)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Start(ctx, "c2"); err != nil {
			t.Fatal(err)
		}
		if err := end(p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		<-p.Done()
		if status, err := p.Status(); err != nil || status != 128+9 {
			t.Errorf("%s: status %d, %v", name, status, err)
		}
		if err := r.Delete(ctx, "c2"); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Create(ctx, "c3", t.TempDir(), io); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("a bundle of nothing: %v", err)
	}
}

func readLine(t *testing.T, f *os.File) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := f.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func wantLine(t *testing.T, f *os.File, want string) {
	t.Helper()
	if got := readLine(t, f); got != want {
		t.Errorf("the container says %q, want %q", got, want)
	}
}
