// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent/cgroup"
)

// counter is a container's script that counts in a file of its root file system, where the test sees it.
const counter = "i=0; while :; do i=$((i+1)); echo $i > /count.new; mv /count.new /count; done"

func (p *pod) count(t *testing.T, id string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, id, "rootfs/count"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(data)
}

func TestPauseOverCrun(t *testing.T) {
	p := newPod(t)
	ctx := t.Context()
	p.run(t, busybox("c1", counter))
	moves := func() {
		t.Helper()
		before := p.count(t, "c1")
		eventually(t, "the container counts", func() bool { return p.count(t, "c1") != before })
	}
	for range sample(3, 1, 20) {
		moves()
		if err := p.PauseContainer(ctx, "c1"); err != nil {
			t.Fatal(err)
		}
		if frozen, err := (cgroup.Hierarchy{}).Frozen("/containers/c1"); err != nil || !frozen {
			t.Errorf("frozen: %t, %v", frozen, err)
		}
		before := p.count(t, "c1")
		time.Sleep(100 * time.Millisecond) // in which it would have counted
		if after := p.count(t, "c1"); after != before {
			t.Errorf("a paused container went on from %q to %q", before, after)
		}
		if _, err := p.StatsContainer(ctx, "c1"); err != nil {
			t.Error(err)
		}
		if err := p.ResumeContainer(ctx, "c1"); err != nil {
			t.Fatal(err)
		}
	}
	moves()
	if err := p.PauseContainer(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(ctx, "c1", "", 9); err != nil {
		t.Fatal(err)
	}
	p.wantStatus(t, "c1", "", 128+9)
}

// Processes that multiply while they are killed: none may be left over.
func TestForkBombOverCrun(t *testing.T) {
	needControllers(t, "pids")
	p := newPod(t)
	ctx := t.Context()
	for range sample(3, 1, 20) {
		c := busybox("c1", "echo ready; exec sleep 1000")
		c.Spec.Linux = &specs.Linux{Resources: &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(60))}}}
		p.run(t, c)
		p.say(t, "c1", "", "ready\n")
		if err := p.Exec(ctx, "c1", "bomb", shell("b() { while :; do b & sleep 0.01 & done; }; b 2>/dev/null")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the limit is met", func() bool {
			stats, err := p.StatsContainer(ctx, "c1")
			if err != nil {
				t.Fatal(err)
			}
			return stats.Pids != nil && stats.Pids.Limit == 60 && stats.Pids.Current >= 50
		})
		if err := p.Signal(ctx, "c1", "", 9); err != nil {
			t.Fatal(err)
		}
		p.wantStatus(t, "c1", "", 128+9)
		if _, err := p.Wait(ctx, "c1", "bomb"); err != nil { // it may have ended by itself when it could not fork
			t.Error(err)
		}
		eventually(t, "no process is left", func() bool {
			pids, err := cgroup.Hierarchy{}.Procs("/containers/c1")
			return err != nil || len(pids) == 0
		})
		if err := p.RemoveContainer(ctx, "c1", 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUpdateOverCrun(t *testing.T) {
	needControllers(t, "cpu", "memory", "pids")
	p := newPod(t)
	ctx := t.Context()
	p.run(t, busybox("c1", "exec sleep 1000"))
	limit := func(file, want string) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(cgroupRoot, "containers/c1", file))
		if got := strings.TrimSpace(string(data)); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", file, got, err, want)
		}
	}
	update := func(r specs.LinuxResources) {
		t.Helper()
		if err := p.UpdateContainer(ctx, "c1", &r); err != nil {
			t.Error(err)
		}
	}
	update(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(64 << 20))}})
	limit("memory.max", "67108864")
	update(specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(int64(50000)), Period: new(uint64(100000)), Shares: new(uint64(2048))}})
	limit("cpu.max", "50000 100000")
	update(specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(33))}})
	limit("pids.max", "33")
	limit("memory.max", "67108864")
	stats, err := p.StatsContainer(ctx, "c1")
	if err != nil || stats.Memory.Usage.Limit != 64<<20 || stats.Pids.Limit != 33 || stats.Memory.Usage.Usage == 0 || stats.Pids.Current != 1 {
		t.Errorf("statistics %+v, %v", stats, err)
	}
}

func TestStatsOverCrun(t *testing.T) {
	p := newPod(t)
	p.run(t, busybox("c1", counter))
	used := func() uint64 {
		t.Helper()
		stats, err := p.StatsContainer(t.Context(), "c1")
		if err != nil || stats.CPU == nil {
			t.Fatalf("statistics %+v, %v", stats, err)
		}
		return stats.CPU.Usage
	}
	first := used()
	eventually(t, "the container uses the processor", func() bool { return used() > first })
}

// The kernel kills a container that uses too much memory, and the sandbox tells of it.
func TestOOMOverCrun(t *testing.T) {
	needControllers(t, "memory")
	p := newPod(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range sample(2, 1, 2) {
		c := inProgram("c1", "eat")
		c.Spec.Linux = &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(48 << 20)), Swap: new(int64(48 << 20))}}}
		p.run(t, c)
		if id, err := p.NextOOM(ctx); err != nil || id != "c1" {
			t.Errorf("event of %q, %v", id, err)
		}
		p.wantStatus(t, "c1", "", 128+9)
		if err := p.RemoveContainer(ctx, "c1", 0); err != nil {
			t.Fatal(err)
		}
	}
}
