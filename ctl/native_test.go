// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/agenttest"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/storage/share"
)

// bed is a session with a real sandbox and real processes: only images, OCI runtime, mounts and control groups are fakes.
// There is one at a time, for a program has one reaper: the tests that use it are not parallel.
type bed struct {
	*Session
	sandbox *agent.Sandbox
	runtime *agenttest.Runtime
	cgroups *agenttest.Cgroups
	shared  string // where what is copied into the guest arrives
}

func native(t *testing.T) *bed {
	t.Helper()
	b := newBed(t)
	if err := b.CreateSandbox(t.Context(), "pod", "", nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.sandbox.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b
}

// newBed is one whose sandbox is not created yet.
func newBed(t *testing.T) *bed {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	reaper, err := proc.New(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reaper.Close() })
	dir := t.TempDir()
	b := &bed{runtime: &agenttest.Runtime{}, cgroups: &agenttest.Cgroups{}, shared: filepath.Join(dir, "run/shared/containers")}
	folder, err := share.Open(b.shared, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = folder.Close() })
	sandbox, err := agent.NewSandbox(agent.Config{
		Images: &agenttest.Images{}, Runtime: b.runtime, Kernel: &agenttest.Kernel{}, Network: &agenttest.Network{},
		Cgroups: b.cgroups, OOM: b.cgroups.OOM(), Share: moved{folder, b.shared},
		Reaper: reaper, Log: log, RunDir: filepath.Join(dir, "run"), ResolvConf: filepath.Join(dir, "resolv.conf"),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Session, b.sandbox = newSession(t, sandbox), sandbox
	return b
}

// moved is a shared folder that lies elsewhere than in a guest.
type moved struct {
	*share.Dir
	to string
}

func (m moved) there(path string) string {
	if rest, ok := strings.CutPrefix(path, sharedDir); ok {
		return m.to + rest
	}
	return path
}

func (m moved) Copy(f agent.File) error {
	f.Path = m.there(f.Path)
	return m.Dir.Copy(share.File(f))
}

func (m moved) OpenBeneath(path string) (*os.File, error) { return m.Dir.OpenBeneath(m.there(path)) }

func (m moved) ReadHead(path string, limit int64) ([]byte, error) {
	return m.Dir.ReadHead(m.there(path), limit)
}
func (moved) DropStale(context.Context) error { return nil }

// start runs a shell script as a container.
func (b *bed) start(t *testing.T, id, script string, change ...func(*Container)) {
	t.Helper()
	c := Container{ID: id, SandboxID: "pod", Image: "r/i:1", Process: shell(script)}
	for _, f := range change {
		f(&c)
	}
	if err := errors.Join(b.CreateContainer(t.Context(), c), b.StartContainer(t.Context(), id)); err != nil {
		t.Fatal(err)
	}
}

func shell(script string) Process { return Process{Args: []string{"sh", "-c", script}} }

// TestStdin: what is read goes to the process, its end is the end of the input, and a process that does not want all of
// it is no error.
func TestStdin(t *testing.T) {
	b := native(t)
	b.start(t, "c1", "sleep 1000")
	big := strings.Repeat("0123456789", 30_000)
	for execID, tt := range map[string]struct{ script, in, out string }{
		"whole":       {"cat | wc -c | tr -d ' '", big, "300000\n"},
		"empty":       {"cat; echo end", "", "end\n"},
		"reads a bit": {"head -c 3; exec <&-; sleep 0.1", big, "012"},
		"reads none":  {"exec <&-; echo none", big, "none\n"},
	} {
		id := strings.ReplaceAll(execID, " ", "-")
		var out, errs bytes.Buffer
		if err := b.Exec(t.Context(), "c1", id, shell(tt.script)); err != nil {
			t.Fatal(err)
		}
		err := b.Interact(t.Context(), "c1", id, Streams{Stdin: strings.NewReader(tt.in), Stdout: &out, Stderr: &errs})
		if err != nil || out.String() != tt.out {
			t.Errorf("%s: %q, %q, %v; want %q", execID, &out, &errs, err, tt.out)
		}
		if status, err := b.Wait(t.Context(), "c1", id); status != 0 || err != nil {
			t.Errorf("%s: status %d, %v", execID, status, err)
		}
	}
	b.start(t, "c2", "exit 4")
	if err := b.Interact(t.Context(), "c2", "", Streams{Stdin: strings.NewReader(big)}); err != nil {
		t.Errorf("container that has ended: %v", err)
	}
	if err := b.Interact(t.Context(), "c3", "", Streams{Stdin: strings.NewReader(big)}); err == nil {
		t.Error("no error of a container that is not there")
	}
}

// TestRunStdin: the input is for the process whose status counts.
func TestRunStdin(t *testing.T) {
	for name, change := range map[string]func(*RunOptions){
		"container": func(*RunOptions) {},
		"exec":      func(o *RunOptions) { o.Container.Process, o.Exec = shell("sleep 1000"), o.Container.Process },
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			o := RunOptions{
				Container: Container{ID: "c1", Image: "r/i", Process: shell("cat; exit 3")}, Stdin: strings.NewReader("hello"), Stdout: &out,
			}
			change(&o)
			if status, err := newBed(t).Run(t.Context(), o); status != 3 || err != nil || out.String() != "hello" {
				t.Errorf("status %d, %q, %v", status, &out, err)
			}
		})
	}
}

// failing is an input that breaks.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestStdinFails(t *testing.T) {
	b := native(t)
	b.start(t, "c1", "cat")
	if err := b.Interact(t.Context(), "c1", "", Streams{Stdin: failing{errTest}}); !errors.Is(err, errTest) {
		t.Errorf("got %v", err)
	}
}

func TestPauseUpdateStatsOOM(t *testing.T) {
	b := native(t)
	b.start(t, "c1", "sleep 1000")
	ctx := t.Context()
	if err := b.PauseContainer(ctx, "c1"); err != nil || !b.cgroups.Frozen()["/kata/c1"] {
		t.Errorf("pause: %v, frozen %v", err, b.cgroups.Frozen())
	}
	if err := b.ResumeContainer(ctx, "c1"); err != nil || b.cgroups.Frozen()["/kata/c1"] {
		t.Errorf("resume: %v, frozen %v", err, b.cgroups.Frozen())
	}
	if err := b.UpdateContainer(ctx, "c1", Limits{Memory: 64 << 20, CPUQuota: -1, Pids: 10}); err != nil {
		t.Fatal(err)
	}
	r := b.runtime.Resources("c1")
	if r == nil || r.Memory == nil || *r.Memory.Limit != 64<<20 || r.CPU == nil || *r.CPU.Quota != -1 || r.CPU.Period != nil || *r.Pids.Limit != 10 {
		t.Errorf("the runtime got %+v", r)
	}
	if st, err := b.Stats(ctx, "c1"); err != nil || st.GetCgroupStats().GetPidsStats().GetCurrent() != 1 || st.GetCgroupStats().GetCpuStats() != nil {
		t.Errorf("statistics %v, %v", st, err)
	}
	if !b.cgroups.OOM().Report("/kata/c1") {
		t.Error("the container is not watched")
	}
	if e, err := b.NextOOM(ctx); err != nil || e.GetContainerId() != "c1" {
		t.Errorf("event %v, %v", e, err)
	}
}

// TestCopy: a tree arrives as it is, in pieces, and a container has its termination log in one of its files.
func TestCopy(t *testing.T) {
	b := native(t)
	dir := t.TempDir()
	big := bytes.Repeat([]byte("x"), pieceSize+3)
	err := errors.Join(
		os.MkdirAll(dir+"/tree/sub", 0o755), os.WriteFile(dir+"/tree/big", big, 0o640), os.WriteFile(dir+"/tree/sub/empty", nil, 0o600),
		os.Symlink("sub/empty", dir+"/tree/link"), os.Symlink("tree", dir+"/alias"), os.WriteFile(dir+"/why", []byte("it was full"), 0o600),
		unix.Mkfifo(dir+"/fifo", 0o600), os.Chmod(dir+"/tree/sub", 0o711),
	)
	if err != nil {
		t.Fatal(err)
	}
	pieces := 0
	b.OnStep = func(s Step) { pieces++ }
	done, err := b.Copy(t.Context(), dir+"/alias", "conf/tree")
	want := Copied{Path: "/run/kata-containers/shared/containers/conf/tree", Files: 2, Folders: 2, Links: 1, Bytes: int64(len(big))}
	if err != nil || done != want || pieces != 5 {
		t.Errorf("copied %+v in %d steps, %v", done, pieces, err)
	}
	got := b.shared + "/conf/tree"
	if data, err := os.ReadFile(got + "/big"); err != nil || !bytes.Equal(data, big) {
		t.Errorf("%d bytes arrived, %v", len(data), err)
	}
	if target, err := os.Readlink(got + "/link"); err != nil || target != "sub/empty" {
		t.Errorf("link to %q, %v", target, err)
	}
	for name, mode := range map[string]os.FileMode{"/big": 0o640, "/sub": 0o711 | os.ModeDir, "/sub/empty": 0o600} {
		if info, err := os.Stat(got + name); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	for source, name := range map[string]string{dir + "/fifo": "f", dir + "/none": "n", dir + "/why": "../why", "/": "/"} {
		if _, err := b.Copy(t.Context(), source, name); err == nil {
			t.Errorf("%s was copied to %s", source, name)
		}
	}
	if _, err := b.Copy(t.Context(), dir+"/why", "why"); err != nil {
		t.Fatal(err)
	}
	b.start(t, "c1", "true", func(c *Container) {
		c.Mounts = []Mount{{Source: b.shared + "/why", Destination: "/dev/termination-log"}}
		c.Annotations = map[string]string{TerminationPath: "/dev/termination-log"}
	})
	if r, err := b.TerminationLog(t.Context(), "c1"); err != nil || r.GetData() != "it was full" {
		t.Errorf("termination log %q, %v", r.GetData(), err)
	}
}

// TestShrinkingFile: a file that has become shorter meanwhile is not completed with something else.
func TestShrinkingFile(t *testing.T) {
	t.Parallel()
	p := newPod()
	s := newSession(t, p)
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, make([]byte, 2*pieceSize), 0o600); err != nil {
		t.Fatal(err)
	}
	p.onCopy = func() error { return os.Truncate(name, pieceSize+1) }
	if done, err := s.Copy(t.Context(), name, "f"); err == nil || !strings.Contains(err.Error(), "had 2097152 bytes") {
		t.Errorf("%+v, %v", done, err)
	}
}

func TestSandboxSharesPIDs(t *testing.T) {
	t.Parallel()
	p := newPod()
	s := newSession(t, p)
	if err := s.SetUpSandbox(t.Context(), Sandbox{ID: "pod", Hostname: "h", SharePID: true}); err != nil {
		t.Fatal(err)
	}
	if got := p.calls(); len(got) != 1 || got[0] != "sandbox pod h shared" {
		t.Errorf("calls %q", got)
	}
}

// TestProcessTerminal: what a process with a terminal is in a request.
func TestProcessTerminal(t *testing.T) {
	t.Parallel()
	p := Process{Args: []string{"sh"}, Env: []string{"A=1"}, Terminal: true, Size: Size{Rows: 2, Columns: 3}}.pb(nil)
	if !p.GetTerminal() || p.GetConsoleSize().GetHeight() != 2 || p.GetConsoleSize().GetWidth() != 3 || strings.Join(p.GetEnv(), " ") != DefaultTerm+" "+DefaultPath+" A=1" {
		t.Errorf("got %v", p)
	}
	p = Process{Args: []string{"sh"}, Env: []string{"TERM=linux"}, Terminal: true}.pb(nil)
	if p.GetConsoleSize() != nil || strings.Join(p.GetEnv(), " ") != DefaultPath+" TERM=linux" {
		t.Errorf("got %v", p)
	}
}

func TestMounts(t *testing.T) {
	t.Parallel()
	c := Container{ID: "c1", Image: "r/i", Process: shell("true"), Mounts: []Mount{
		{Source: "a/b", Destination: "/b", ReadOnly: true}, {Source: "/run/kata-containers/shared/containers/c", Destination: "/c"},
	}}
	r, err := c.Request()
	if err != nil {
		t.Fatal(err)
	}
	m := r.GetOCI().GetMounts()[len(defaultMounts()):]
	for i, want := range []*pb.Mount{
		{Source: sharedDir + "/a/b", Destination: "/b", Options: []string{"rbind", "rprivate", "ro"}},
		{Source: sharedDir + "/c", Destination: "/c", Options: []string{"rbind", "rprivate", "rw"}},
	} {
		if m[i].GetSource() != want.GetSource() || m[i].GetDestination() != want.GetDestination() || m[i].GetType() != "bind" ||
			strings.Join(m[i].GetOptions(), ",") != strings.Join(want.GetOptions(), ",") {
			t.Errorf("mount %v, want %v", m[i], want)
		}
	}
	for _, wrong := range []Mount{{Source: "../x", Destination: "/x"}, {Source: "", Destination: "/x"}, {Source: "x", Destination: "x"}} {
		c.Mounts = []Mount{wrong}
		if _, err := c.Request(); err == nil {
			t.Errorf("%+v was taken", wrong)
		}
	}
}
