// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/oci"
)

// hostFile is a file or link that the host copies into the guest.
func (p *pod) hostFile(name string, mode uint32, data string) agent.File {
	return agent.File{
		Path: filepath.Join(p.dir, oci.SharedDir, name), Size: int64(len(data)), Mode: mode, DirMode: 0o755, Data: []byte(data),
	}
}

// reads is a container that writes out a file that it has from the host.
func (p *pod) reads(id, name string) agent.ContainerConfig {
	c := busybox(id, "cat /config/* /config; exec sleep 1000")
	c.Spec.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc"},
		{Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		{Destination: "/config", Type: "bind", Source: filepath.Join(p.dir, oci.SharedDir, name), Options: []string{"rbind", "ro"}},
	}
	return c
}

const guestSecret = "only for the guest"

func canary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(path, []byte(guestSecret), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Threat: the host puts a link to a file of the guest into the place of a file that a container is to have, before the
// container is created or just then. Seen: the container does not get that file, and mostly is not created at all.
func TestSharedFilesOverCrun(t *testing.T) {
	p := newPod(t)
	ctx := t.Context()
	secret := canary(t)
	if err := p.CopyFile(ctx, p.hostFile("volume/key", unix.S_IFREG|0o644, "value")); err != nil {
		t.Fatal(err)
	}
	for id, name := range map[string]string{"file": "volume/key", "folder": "volume"} {
		p.run(t, p.reads(id, name))
		p.say(t, id, "", "value")
		// What a container has stays what it was.
		if err := p.CopyFile(ctx, p.hostFile("volume/key", unix.S_IFLNK|0o777, secret)); err != nil {
			t.Fatal(err)
		}
		if got := p.execShell(t, id, "e1", "cat /config/key /config 2>/dev/null"); strings.Contains(got, guestSecret) {
			t.Errorf("%s: the container sees %q", id, got)
		}
		if err := p.CreateContainer(ctx, p.reads("link", "volume/key")); err == nil {
			t.Error("a container was created whose file is a link")
		}
		if err := p.CopyFile(ctx, p.hostFile("volume/key", unix.S_IFREG|0o644, "value")); err != nil {
			t.Fatal(err)
		}
	}
}

// The same as a race: the file becomes a link and a file again all the time.
func TestSharedFileRaceOverCrun(t *testing.T) {
	p := newPod(t)
	secret := canary(t)
	file, link := p.hostFile("key", unix.S_IFREG|0o644, "value"), p.hostFile("key", unix.S_IFLNK|0o777, secret)
	if err := p.CopyFile(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	p.run(t, p.reads("first", "key"))
	usual := time.Since(start)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			// It stays a file for different times, up to what lets some containers be created.
			for _, f := range []agent.File{link, file} {
				if err := p.CopyFile(t.Context(), f); err != nil {
					t.Error(err)
					return
				}
			}
			time.Sleep(usual * time.Duration(i%16) / 8)
		}
	})
	rounds, created := sample(30, 8, 300), 0
	for i := range rounds {
		id := "c" + strconv.Itoa(i)
		if err := p.CreateContainer(t.Context(), p.reads(id, "key")); err != nil {
			continue
		}
		created++
		if err := p.StartContainer(t.Context(), id); err != nil {
			t.Error(err)
			continue
		}
		data, err := p.ReadStdout(t.Context(), id, "", 100)
		if err != nil || string(data) != "value" {
			t.Errorf("the container sees %q, %v", data, err)
		}
		if err := p.RemoveContainer(t.Context(), id, 0); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
	if created == 0 {
		t.Error("no container was created, so nothing was tested")
	}
	t.Logf("campaign: %d containers of a file that becomes a link all the time, %d of them created", rounds, created)
}

// The PID namespace of the sandbox: a container that asks for it sees the others, and its end leaves them alone.
func TestSharedPIDNamespaceOverCrun(t *testing.T) {
	for name, asked := range map[string]bool{"by the sandbox": false, "by the container": true} {
		t.Run(name, func(t *testing.T) {
			p := bareRuntimePod(t, nil)
			if err := p.Create(t.Context(), agent.SandboxConfig{ID: "pod", SharePIDNS: !asked}); err != nil {
				t.Fatal(err)
			}
			p.run(t, busybox("pause", "echo ready; exec sleep 1000"))
			p.say(t, "pause", "", "ready\n")
			c := busybox("app", "echo $$; sleep 1000 & exec sleep 1000")
			c.SandboxPIDNS = asked
			c.Spec.Mounts = []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/dev", Type: "tmpfs", Options: []string{"mode=755"}}}
			p.run(t, c)
			if data, err := p.ReadStdout(t.Context(), "app", "", 100); err != nil || string(data) == "1\n" {
				t.Errorf("the container's process has the number %q, %v", data, err)
			}
			if got := p.execShell(t, "app", "e1", `/busybox tr '\0' ' ' < /proc/1/cmdline`); !strings.HasPrefix(got, "sleep 1000") {
				t.Errorf("process 1 of the container is %q", got)
			}
			if err := p.Signal(t.Context(), "app", "", 9); err != nil {
				t.Fatal(err)
			}
			p.wantStatus(t, "app", "", 128+9)
			eventually(t, "the container's last process is gone", func() bool {
				data, err := os.ReadFile(cgroupRoot + "/containers/app/cgroup.procs")
				return err != nil || len(data) == 0
			})
			if err := p.RemoveContainer(t.Context(), "app", 0); err != nil {
				t.Error(err)
			}
			if got := p.execShell(t, "pause", "e1", "echo lives"); got != "lives\n" {
				t.Errorf("the other container says %q", got)
			}
		})
	}
}

// A failed exec leaves a zombie in the container's PID namespace. Were it not collected at once, the init process could
// not end before the sweeper comes, which a start under way elsewhere keeps from coming.
func TestFailedExecDoesNotKeepTheContainer(t *testing.T) {
	for _, groups := range []bool{true, false} {
		t.Run(fmt.Sprintf("cgroups %t", groups), func(t *testing.T) {
			p := newPodWith(t, func(_ *pod, c *agent.Config) {
				if !groups {
					c.Cgroups = nil
				}
			})
			p.run(t, busybox("c1", "exec sleep 1000"))
			release := p.reaper.Hold()
			defer release()
			if err := p.Exec(t.Context(), "c1", "e1", &specs.Process{Args: []string{"/none"}}); err == nil {
				t.Fatal("a missing program was started")
			}
			if err := p.Signal(t.Context(), "c1", "", 9); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if status, err := p.Wait(ctx, "c1", ""); err != nil || status != 128+9 {
				t.Errorf("status %d, %v", status, err)
			}
		})
	}
}
