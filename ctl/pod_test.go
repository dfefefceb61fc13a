// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/agent/netdev"
	"github.com/cloister-cc/cloister/rpc"
)

// pod is a sandbox whose processes print their arguments and exit with the status that they are told, or on a signal.
type pod struct {
	rpc.Sandbox        // the calls that the shim's steps do without
	fail        string // the call that fails

	onCopy func() error // what happens when a piece of a file has come; nil is nothing

	mu    sync.Mutex
	got   []string
	procs map[string]*process
}

type process struct {
	out    chan []byte
	exited chan struct{}
	status int
	kill   func(status int)
}

func newPod() *pod { return &pod{procs: make(map[string]*process)} }

var errTest = errors.New("failed as told")

func (p *pod) call(format string, args ...any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	call := fmt.Sprintf(format, args...)
	p.got = append(p.got, call)
	if p.fail != "" && strings.HasPrefix(call, p.fail) {
		return errTest
	}
	return nil
}

// calls returns the calls so far, reads left out.
func (p *pod) calls() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

func (p *pod) spawn(key string, args []string) {
	proc := &process{out: make(chan []byte, 1), exited: make(chan struct{})}
	var once sync.Once
	proc.kill = func(status int) {
		once.Do(func() {
			proc.status = status
			close(proc.out)
			close(proc.exited)
		})
	}
	p.mu.Lock()
	p.procs[key] = proc
	p.mu.Unlock()
	if len(args) > 0 && args[0] == "exit" {
		proc.out <- []byte(strings.Join(args, " "))
		var status int
		_, _ = fmt.Sscan(args[1], &status)
		proc.kill(status)
	}
}

func (p *pod) proc(id, execID string) *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.procs[id+"/"+execID]
}

func (p *pod) Create(_ context.Context, c agent.SandboxConfig) error {
	if c.SharePIDNS {
		return p.call("sandbox %s %s shared", c.ID, c.Hostname)
	}
	return p.call("sandbox %s %s", c.ID, c.Hostname)
}
func (p *pod) Destroy(context.Context) error { return p.call("destroy") }
func (p *pod) CreateContainer(_ context.Context, c agent.ContainerConfig) error {
	p.mu.Lock()
	p.procs[c.ID+"/args"] = &process{out: make(chan []byte, 1)}
	p.procs[c.ID+"/args"].out <- []byte(strings.Join(c.Spec.Process.Args, "\x00"))
	p.mu.Unlock()
	return p.call("create %s %s", c.ID, c.Storages[0].Source)
}

func (p *pod) StartContainer(_ context.Context, id string) error {
	p.spawn(id+"/", strings.Split(string(<-p.proc(id, "args").out), "\x00"))
	return p.call("start %s", id)
}

func (p *pod) RemoveContainer(_ context.Context, id string, _ time.Duration) error {
	if proc := p.proc(id, ""); proc != nil {
		proc.kill(137)
	}
	return p.call("remove %s", id)
}

func (p *pod) Exec(_ context.Context, id, execID string, s *specs.Process) error {
	p.spawn(id+"/"+execID, s.Args)
	return p.call("exec %s %s %q", id, execID, s.Args)
}

func (p *pod) Signal(_ context.Context, id, execID string, signal int) error {
	p.proc(id, execID).kill(128 + signal)
	return p.call("signal %s %s %d", id, execID, signal)
}

func (p *pod) Wait(ctx context.Context, id, execID string) (int, error) {
	proc := p.proc(id, execID)
	select {
	case <-proc.exited:
		return proc.status, p.call("wait %s %s", id, execID)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (p *pod) ReadStdout(ctx context.Context, id, execID string, _ int) ([]byte, error) {
	select {
	case data := <-p.proc(id, execID).out:
		return data, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pod) ReadStderr(ctx context.Context, id, execID string, _ int) ([]byte, error) {
	select {
	case <-p.proc(id, execID).exited:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pod) UpdateInterface(_ context.Context, i netdev.Interface) error {
	return p.call("interface %s %s %v", i.Name, i.HWAddr, i.Addresses)
}

func (p *pod) UpdateRoutes(_ context.Context, r []netdev.Route) ([]netdev.Route, error) {
	return r, p.call("route %v %s", r[0].Gateway, r[0].Device)
}

func (p *pod) DropStaleMounts(context.Context) {}

func (p *pod) WriteStdin(_ context.Context, id, execID string, data []byte) error {
	return p.call("stdin %s %s %q", id, execID, data)
}

func (p *pod) CloseStdin(_ context.Context, id, execID string) error {
	return p.call("close %s %s", id, execID)
}

func (p *pod) ResizeTerminal(id, execID string, rows, columns int) error {
	return p.call("resize %s %s %d %d", id, execID, rows, columns)
}

func (p *pod) PauseContainer(_ context.Context, id string) error  { return p.call("pause %s", id) }
func (p *pod) ResumeContainer(_ context.Context, id string) error { return p.call("resume %s", id) }
func (p *pod) UpdateContainer(_ context.Context, id string, r *specs.LinuxResources) error {
	return p.call("update %s %d", id, *r.CPU.Shares)
}

func (p *pod) StatsContainer(_ context.Context, id string) (*cgroup.Stats, error) {
	return &cgroup.Stats{}, p.call("stats %s", id)
}

func (p *pod) NextOOM(context.Context) (string, error) { return "c1", p.call("oom") }

func (p *pod) CopyFile(_ context.Context, f agent.File) error {
	if p.onCopy != nil {
		return p.onCopy()
	}
	return p.call("copy %s %q", f.Path, f.Data)
}

func (p *pod) TerminationLog(_ context.Context, id string) (string, error) {
	return "why", p.call("termination log %s", id)
}
