// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc_test

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/agenttest"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/rpc"
)

// TestNative walks the shim's whole sequence through client, wire and domain, with real processes: only images, OCI
// runtime, mounts and netlink are fakes.
func TestNative(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	reaper, err := proc.New(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reaper.Close() })
	dir := t.TempDir()
	sandbox, err := agent.NewSandbox(agent.Config{
		Images: &agenttest.Images{}, Runtime: &agenttest.Runtime{}, Kernel: &agenttest.Kernel{}, Network: &agenttest.Network{},
		Reaper: reaper, Log: log, RunDir: filepath.Join(dir, "run"), ResolvConf: filepath.Join(dir, "resolv.conf"),
	})
	if err != nil {
		t.Fatal(err)
	}
	server, err := rpc.NewServer(rpc.Config{Sandbox: sandbox, Machine: agenttest.Machine{}, Gate: rpc.AllowAll, Log: log, Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	address := "unix://" + filepath.Join(dir, "agent.sock")
	l, err := rpc.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	shut := make(chan error, 1)
	go func() { // as the agent's main does
		<-sandbox.Done()
		shut <- server.Shutdown(context.Background())
	}()

	c, err := client.DialReady(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	s := ctl.NewSession(c)
	s.OnStep = ctl.StepPrinter(t.Output(), false)
	var stdout, stderr bytes.Buffer
	status, err := s.Run(t.Context(), ctl.RunOptions{
		Container: ctl.Container{ID: "c1", Image: "registry.example/i:1", Process: ctl.Process{
			Args: []string{"sh", "-c", `echo "out $A"; echo err >&2; exit 5`}, Env: []string{"A=b", "PATH=/usr/bin:/bin"},
		}},
		Hostname: "h", DNS: []string{"nameserver 10.0.2.3"}, Pause: true, Stdout: &stdout, Stderr: &stderr,
	})
	if err != nil || status != 5 || stdout.String() != "out b\n" || stderr.String() != "err\n" {
		t.Errorf("status %d, stdout %q, stderr %q, error %v", status, &stdout, &stderr, err)
	}
	for name, ch := range map[string]chan error{"Shutdown": shut, "Serve": served} {
		if err := <-ch; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
