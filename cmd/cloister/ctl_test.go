// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent/agenttest"
	"github.com/cloister-cc/cloister/rpc"
)

// stub is a sandbox of which only what is called here exists.
type stub struct{ rpc.Sandbox }

func (stub) Exec(context.Context, string, string, *specs.Process) error { return nil }
func (stub) Wait(context.Context, string, string) (int, error)          { return 3, nil }
func (stub) ReadStdout(context.Context, string, string, int) ([]byte, error) {
	return nil, nil
}

func (stub) ReadStderr(context.Context, string, string, int) ([]byte, error) {
	return nil, nil
}

// serve serves an agent on a socket.
func serve(t *testing.T, sandbox rpc.Sandbox, machine rpc.Machine, gate rpc.Gate) (address string) {
	t.Helper()
	server, err := rpc.NewServer(rpc.Config{Sandbox: sandbox, Machine: machine, Gate: gate, Version: "7.8.9"})
	if err != nil {
		t.Fatal(err)
	}
	address = "unix://" + filepath.Join(t.TempDir(), "s")
	l, err := rpc.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return address
}

// execute runs a command line and returns what it writes to standard output.
func execute(t *testing.T, in io.Reader, args ...string) (string, error) {
	t.Helper()
	root := newRootCommand()
	var stdout bytes.Buffer
	root.SetIn(in)
	root.SetOut(&stdout)
	root.SetErr(t.Output())
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return stdout.String(), err
}

func TestCtl(t *testing.T) {
	t.Parallel()
	allow := serve(t, stub{}, agenttest.Machine{}, rpc.AllowAll)
	deny := serve(t, stub{}, agenttest.Machine{}, rpc.DenyAll)
	for line, want := range map[string]struct {
		code     int
		out, err string
	}{
		"check --address " + deny:                 {out: "SERVING\n"},
		"version --address " + allow:              {out: "agent 7.8.9, API 0.0.1\n"},
		"version --json --address " + deny:        {out: `"agent_version":`},
		"details --address " + deny:               {code: exitFailure, err: "GuestDetailsRequest is blocked by policy"},
		"details --address " + allow:              {out: "image_guest_pull"},
		"wait c1 --address " + allow:              {code: 3, out: "3\n"},
		"exec c1 --address " + allow + " -- true": {code: 3},
		"check":                                             {code: exitUsage, err: "not given: --address"},
		"check --address nonsense":                          {code: exitUsage, err: "use hvsock://"},
		"signal c1 x --address " + allow:                    {code: exitUsage, err: "name of a signal"},
		"create-container c1 --address " + allow:            {code: exitUsage, err: "requires at least 3 arg(s)"},
		"create-container c1 i --address " + allow:          {code: exitUsage, err: "use cloister ctl create-container [flags] ID IMAGE -- COMMAND..."},
		"signal c1 sigterm --address " + allow:              {code: exitFailure, err: "SignalProcess(c1, 15)"}, // the stub has none
		"run i --mac x --ip y --address " + allow + " -- z": {code: exitUsage, err: "--mac is not six bytes"},
		"run i --ip 10.0.2.15/24 --address x -- z":          {code: exitUsage, err: "not given: --mac"},
		"run i --mac 02:00:00:00:00:01 --ip y -- z":         {code: exitUsage, err: "--ip is not ADDRESS/BITS"},
		"run i --mac 02:00:00:00:00:01 --gateway y -- z":    {code: exitUsage, err: "--gateway is not an address"},
		"update-interface --address " + allow:               {code: exitUsage, err: "not given: --mac"},
		"check --wait 1ns --address unix:///no/such/file":   {code: exitFailure, err: "is not ready"},
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			out, err := execute(t, nil, append([]string{"ctl"}, strings.Fields(line)...)...)
			if got := exitCode(err); got != want.code {
				t.Errorf("exit code %d (%v), want %d", got, err, want.code)
			}
			if !strings.Contains(out, want.out) {
				t.Errorf("printed %q, want %q", out, want.out)
			}
			if want.err != "" && (err == nil || !strings.Contains(err.Error(), want.err)) {
				t.Errorf("error %v, want %q", err, want.err)
			}
		})
	}
}
