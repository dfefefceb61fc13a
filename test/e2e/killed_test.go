// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/leakscan"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/test/story"
)

// Threat: the agent is killed while a container runs, for whatever reason. Observable: the kernel panics and the machine
// ends; nothing that agent or container knew is on the console.
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	w := need(t)
	canary := story.NewCanary()
	ref, err := w.PushImage(t.Context(), w.Registry, story.Image{
		Name: "killed", Files: map[string]string{"etc/canary": canary}, KeyURI: imageURI, KeyFile: w.imageKey,
	})
	must(t, err)
	agent := w.killerWithAgent(t)
	dir, err := w.BuildGuest(t.Context(), "killed", func(o *guestimage.Options) {
		w.withImageKey(o)
		o.Agent = agent
	})
	must(t, err)
	captured := t.TempDir()
	vm := w.boot(t, dir, func(c *qemu.Config) { c.Capture = captured })
	_, s := connect(t, vm)
	must(t, story.SetUpNetwork(t.Context(), s))
	must(t, s.CreateSandbox(t.Context(), "pod", "story", nil))
	must(t, s.CreateContainer(t.Context(), container("c1", ref, "/bin/sh", "-c", "read c < /etc/canary; exec sleep 1000")))
	must(t, s.StartContainer(t.Context(), "c1"))
	kill(t, vm)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	must(t, vm.Wait(ctx))
	if !strings.Contains(vm.Console(), "Kernel panic - not syncing: Attempted to kill init!") {
		t.Error("the kernel did not panic")
	}
	nothingOnTheConsole(t, w, dir, filepath.Join(captured, qemu.CaptureConsole), canary)
}

// killerWithAgent builds the PID 1 that kills the agent, with the agent behind it.
func (w *world) killerWithAgent(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "killer")
	must(t, story.GoBuild(t.Context(), w.Arch, out, "github.com/cloister-cc/cloister/test/e2e/killer"))
	killer, err := os.ReadFile(out)
	must(t, err)
	agent, err := os.ReadFile(w.Agent)
	must(t, err)
	all := binary.BigEndian.AppendUint64(append(killer, agent...), uint64(len(agent)))
	must(t, os.WriteFile(out, all, 0o700))
	return out
}

// kill connects to the port on which the killer waits.
func kill(t *testing.T, vm *qemu.VM) {
	t.Helper()
	dialPort(t, vm, 1999)
}

// dialPort connects to a vsock port of the guest, without waiting for the answer.
func dialPort(t *testing.T, vm *qemu.VM, port int) net.Conn {
	t.Helper()
	socket := strings.TrimSuffix(strings.TrimPrefix(vm.AgentAddress(), "hvsock://"), ":1024")
	conn, err := net.Dial("unix", socket)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(bootTimeout)))
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", port)
	must(t, err)
	return conn
}

// nothingOnTheConsole searches a console for the guest's keys and a canary.
func nothingOnTheConsole(t *testing.T, w *world, guest, console, canary string) {
	t.Helper()
	diskKey, err := story.InitramfsFile(filepath.Join(guest, guestimage.InitramfsFile), layout.DiskKeyPath)
	must(t, err)
	imageKey, err := os.ReadFile(w.imageKey)
	must(t, err)
	twin := filepath.Join(t.TempDir(), "twin")
	must(t, story.Plant(console, twin, []byte(canary)))
	report, err := leakscan.Scan(t.Context(), []leakscan.Secret{
		{Name: "canary", Value: []byte(canary)}, {Name: "disk key", Value: diskKey}, {Name: "image key", Value: imageKey},
	}, []leakscan.Artefact{{Name: "console", Paths: []string{console}, Control: []string{twin}}})
	must(t, err)
	if report.Leaked || report.Blind {
		t.Errorf("console: %+v", report.Results)
	}
}
