// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"context"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
)

// busyboxImage is the reference of an image with the guest's busybox.
const busyboxImage = "registry.example/busybox:1"

// imageDigest is what every image is said to have.
const imageDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// binaryImages mounts a tmpfs with one program as every image, busybox or this test binary; it implements
// agent.Images.
type binaryImages struct {
	mu      *sync.Mutex
	targets map[string]string
}

func newBinaryImages(t *testing.T) binaryImages {
	t.Helper()
	crunPath(t)
	if os.Getenv(busyboxEnv) == "" {
		t.Fatalf("the environment does not say where busybox is (%s)", busyboxEnv)
	}
	return binaryImages{new(sync.Mutex), make(map[string]string)}
}

func (i binaryImages) Mount(_ context.Context, id, reference, target string) (digest string, err error) {
	if err := unix.Mount("tmpfs", target, "tmpfs", 0, "mode=755"); err != nil {
		return "", err
	}
	i.mu.Lock()
	i.targets[id] = target
	i.mu.Unlock()
	for _, dir := range []string{"proc", "dev", "sys", "mnt", "etc"} {
		if err := os.Mkdir(filepath.Join(target, dir), 0o755); err != nil {
			return "", err
		}
	}
	if reference == busyboxImage {
		return imageDigest, mountProgram(os.Getenv(busyboxEnv), filepath.Join(target, "busybox"))
	}
	return imageDigest, mountProgram(program(), filepath.Join(target, "program"))
}

// mountProgram shows a program, which takes less time and memory than a copy.
func mountProgram(from, to string) error {
	if err := os.WriteFile(to, nil, 0o755); err != nil {
		return err
	}
	return unix.Mount(from, to, "", unix.MS_BIND, "")
}

func (i binaryImages) MountPause(ctx context.Context, id, target string) (*specs.Process, error) {
	_, err := i.Mount(ctx, id, "", target)
	return &specs.Process{Args: []string{"/program", inContainer, "serve"}, Cwd: "/"}, err
}

func (i binaryImages) Unmount(_ context.Context, id string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	target, ok := i.targets[id]
	if !ok {
		return nil
	}
	delete(i.targets, id)
	return unix.Unmount(target, unix.MNT_DETACH)
}

func (i binaryImages) mounted() map[string]string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.targets)
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}

func (p *pod) start(t *testing.T, id string, sharePID bool, args ...string) {
	t.Helper()
	err := p.CreateContainer(t.Context(), agent.ContainerConfig{
		ID: id,
		Spec: &specs.Spec{
			Process: &specs.Process{
				Args: append([]string{"/program", inContainer}, args...), Cwd: "/", Env: []string{"TOKEN=of-" + id},
				User: specs.User{UID: 1000, GID: 1000}, NoNewPrivileges: true,
			},
			Mounts: []specs.Mount{
				{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
				{Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
				{Destination: "/dev/shm", Type: "bind", Source: filepath.Join(p.dir, "sandbox/shm"), Options: []string{"rbind"}},
				{Destination: "/etc/resolv.conf", Type: "bind", Source: filepath.Join(p.dir, "sandbox/resolv.conf"), Options: []string{"rbind", "ro"}},
			},
			Linux: &specs.Linux{
				CgroupsPath: "pod.slice:test:" + id,
				Sysctl:      map[string]string{"kernel.shmmni": "4000", "net.ipv4.ping_group_range": "0 0"},
			},
		},
		Storages:     []agent.Storage{{Driver: agent.DriverImageGuestPull, Source: "registry.example/app:1"}},
		SandboxPIDNS: sharePID,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// output reads standard output to its end.
func (p *pod) output(t *testing.T, id, execID string) string {
	t.Helper()
	var all strings.Builder
	for {
		data, err := p.ReadStdout(t.Context(), id, execID, 32768)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) == 0 {
			return all.String()
		}
		all.Write(data)
	}
}

func (p *pod) wantStatus(t *testing.T, id, execID string, want int) {
	t.Helper()
	if got, err := p.Wait(t.Context(), id, execID); err != nil || got != want {
		t.Errorf("status of %q/%q: %d, %v; want %d", id, execID, got, err, want)
	}
}

// One sandbox with real containers: what the stand-ins of the agent's own tests cannot show.
func TestSandboxOverCrun(t *testing.T) {
	p := newPod(t)
	ctx := t.Context()
	p.start(t, "pause", false, "tell-and-serve")
	p.start(t, "app", true, "tell-and-serve")
	told := make(map[string]map[string]string)
	for _, id := range []string{"pause", "app"} {
		data, err := p.ReadStdout(ctx, id, "", 4096)
		if err != nil {
			t.Fatal(err)
		}
		told[id] = parseTold(string(data))
	}
	for key, want := range map[string]string{"host": "pod-1", "uid": "1000", "shmmni": "4000", "resolv": "nameserver 192.0.2.1"} {
		for id, got := range told {
			if got[key] != want {
				t.Errorf("%s: %s is %q, want %q", id, key, got[key], want)
			}
		}
	}
	if told["pause"]["number"] != "1" || told["app"]["number"] == "1" {
		t.Errorf("pids in the shared namespace: %s and %s", told["pause"]["number"], told["app"]["number"])
	}
	own := tell()
	for _, ns := range []string{"ipc", "uts", "pid", "net", "mnt", "cgroup"} {
		a, b, mine := told["pause"][ns], told["app"][ns], own[ns]
		shared, ofAgent := ns == "ipc" || ns == "uts" || ns == "pid" || ns == "net", ns == "net"
		if (a == b) != shared || (a == mine) != ofAgent || a == "" {
			t.Errorf("%s namespaces: %s, %s, and %s of the agent", ns, a, b, mine)
		}
	}
	if err := p.Exec(ctx, "app", "e1", &specs.Process{Args: []string{"/program", inContainer, "tell"}, User: specs.User{UID: 1001}}); err != nil {
		t.Fatal(err)
	}
	if got := parseTold(p.output(t, "app", "e1")); got["token"] != "of-app" || got["uid"] != "1001" || got["mnt"] != told["app"]["mnt"] {
		t.Errorf("exec tells %v", got)
	}
	p.wantStatus(t, "app", "e1", 5)
	if err := p.Signal(ctx, "app", "", 15); err != nil {
		t.Fatal(err)
	}
	p.wantStatus(t, "app", "", 3)
	if err := p.RemoveContainer(ctx, "app", 0); err != nil {
		t.Error(err)
	}
	if err := p.Signal(ctx, "pause", "", 9); err != nil {
		t.Fatal(err)
	}
	p.wantStatus(t, "pause", "", 128+9)
	if err := p.Signal(ctx, "pause", "", 9); err != nil {
		t.Errorf("SIGKILL after the exit: %v", err)
	}
}

// The init process of a PID namespace gets no signal that it does not handle; SIGTERM must end it all the same.
func TestTerminateOverCrun(t *testing.T) {
	p := newPod(t)
	// A Go program handles every signal, so this takes another.
	p.run(t, busybox("c1", "echo ready; exec /busybox sleep 1000"))
	if data, err := p.ReadStdout(t.Context(), "c1", "", 100); err != nil || string(data) != "ready\n" {
		t.Fatalf("%q, %v", data, err)
	}
	if err := p.Signal(t.Context(), "c1", "", 15); err != nil {
		t.Fatal(err)
	}
	p.wantStatus(t, "c1", "", 128+9)
}

// A process that an exec left behind in the container holds its pipe, and becomes the container's, not the agent's.
func TestBackgroundOverCrun(t *testing.T) {
	p := newPod(t)
	p.start(t, "c1", false, "serve")
	if err := p.Exec(t.Context(), "c1", "e1", &specs.Process{Args: []string{"/program", inContainer, "leave-behind"}}); err != nil {
		t.Fatal(err)
	}
	if got := p.output(t, "c1", "e1"); got != "left\n" {
		t.Errorf("output %q", got)
	}
	p.wantStatus(t, "c1", "e1", 0)
	if err := p.RemoveContainer(t.Context(), "c1", 0); err != nil {
		t.Error(err)
	}
}

func TestFailedCreateOverCrun(t *testing.T) {
	p := newPod(t)
	err := p.CreateContainer(t.Context(), agent.ContainerConfig{
		ID: "c1", Spec: &specs.Spec{Process: &specs.Process{Args: []string{"/none"}, Cwd: "/"}},
		Storages: []agent.Storage{{Driver: agent.DriverImageGuestPull, Source: "registry.example/app:1"}},
	})
	if err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("a program that is not there: %v", err)
	}
	if left, err := os.ReadDir(p.dir); err != nil || len(left) != 2 {
		t.Errorf("left in the run folder: %v, %v", left, err)
	}
	p.start(t, "c1", false, "serve")
}
