// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestKernelFreeze(t *testing.T) {
	h, path := newGroup(t)
	// An empty group can be frozen too.
	below := sub(t, h, path+"/a")
	for range 2 {
		if err := h.Freeze(t.Context(), below); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Thaw(t.Context(), below); err != nil {
		t.Fatal(err)
	}
	p := start(t, h, below, "echo")
	p.say(t)
	p.hear(t)
	for range 3 {
		for range 2 { // freezing what is frozen is fine
			if err := h.Freeze(t.Context(), path); err != nil {
				t.Fatal(err)
			}
		}
		for _, g := range []string{path, below} {
			if frozen, err := h.Frozen(g); err != nil || !frozen {
				t.Errorf("%s is frozen: %v, %v", g, frozen, err)
			}
		}
		// Its parent keeps the lower group frozen, so that thawing it ends with the context.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := h.Thaw(ctx, below); !errors.Is(err, context.Canceled) {
			t.Errorf("thaw in a frozen group: %v", err)
		}
		p.say(t)
		if err := p.out.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := p.out.Read(make([]byte, 2)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a frozen process answered: %d, %v", n, err)
		}
		if err := p.out.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := h.Thaw(t.Context(), path); err != nil {
				t.Fatal(err)
			}
		}
		if frozen, err := h.Frozen(path); err != nil || frozen {
			t.Errorf("thawed group is frozen: %v, %v", frozen, err)
		}
		p.hear(t)
	}
}

// TestKernelAwait has another process change the state that is waited for, so that the wait depends on the kernel's
// report or on the end of the context.
func TestKernelAwait(t *testing.T) {
	h, path := newGroup(t)
	p := start(t, h, path, "echo")
	group, err := h.open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = group.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := await(ctx, group, "populated", 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for the end of a living process: %v", err)
	}
	result := make(chan error, 1)
	go func() { result <- await(t.Context(), group, "populated", 0) }()
	if err := p.in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestKernelKill(t *testing.T) {
	tests := map[string]func(h Hierarchy, path string) error{
		"by the kernel": func(h Hierarchy, path string) error { return h.Kill(path) },
		"in rounds": func(h Hierarchy, path string) error {
			group, err := h.open(path)
			if err != nil {
				return err
			}
			defer func() { _ = group.Close() }()
			return killRounds(group)
		},
		"frozen": func(h Hierarchy, path string) error {
			return errors.Join(h.Freeze(t.Context(), path), h.Kill(path))
		},
	}
	for name, kill := range tests {
		t.Run(name, func(t *testing.T) {
			h, path := newGroup(t)
			below := sub(t, h, sub(t, h, path+"/a")+"/b")
			processes := []*process{start(t, h, path, "tree"), start(t, h, path, "echo"), start(t, h, below, "tree")}
			for _, p := range processes {
				p.say(t)
				p.hear(t)
			}
			pids, err := h.Procs(path)
			if err != nil || len(pids) != 5 {
				t.Fatalf("processes %v, %v", pids, err)
			}
			for _, p := range processes {
				if !slices.Contains(pids, p.Process.Pid) {
					t.Errorf("process %d is not in %v", p.Process.Pid, pids)
				}
			}
			if err := kill(h, path); err != nil {
				t.Fatal(err)
			}
			for _, p := range processes {
				p.ended(t, unix.SIGKILL)
			}
			if err := h.Remove(t.Context(), path); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(h.root(), path)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the group is left: %v", err)
			}
			if err := errors.Join(kill(h, path+"x"), h.Kill(path), h.Remove(t.Context(), path)); err != nil && name == "by the kernel" {
				t.Errorf("after the removal: %v", err)
			}
		})
	}
}

// TestKernelOwnGroup asks for the group of the test itself.
func TestKernelOwnGroup(t *testing.T) {
	h, path := newGroup(t)
	self, err := ownPath()
	if err != nil {
		t.Fatal(err)
	}
	below := sub(t, h, path+"/self")
	write(t, filepath.Join(h.root(), below, "cgroup.procs"), "0")
	defer write(t, filepath.Join(h.root(), self, "cgroup.procs"), "0")
	for _, g := range []string{path, below} {
		for name, err := range map[string]error{
			"freeze": h.Freeze(t.Context(), g), "kill": h.Kill(g), "remove": h.Remove(t.Context(), g),
		} {
			if !errors.Is(err, fs.ErrPermission) {
				t.Errorf("%s of %s: %v", name, g, err)
			}
		}
	}
}

func TestKernelRemove(t *testing.T) {
	h, path := newGroup(t)
	below := sub(t, h, sub(t, h, path+"/a")+"/b")
	p := start(t, h, below, "echo")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := h.Remove(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("remove with a process: %v", err)
	}
	result := make(chan error, 1)
	go func() { result <- h.Remove(t.Context(), path) }()
	if err := p.in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	if _, err := h.Stats(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stats after the removal: %v", err)
	}
}

// TestKernelRemoved holds a group open while it is removed: its files then fail in ways of their own.
func TestKernelRemoved(t *testing.T) {
	h, path := newGroup(t)
	group, err := h.open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = group.Close() }()
	f, err := group.Open(eventsFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := h.Remove(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	_, errFile := hasValue(f, "populated", 0)
	_, errProcs := procs(group)
	for name, err := range map[string]error{
		"open file": errFile, "processes": errProcs, "freeze": freeze(t.Context(), group), "wait": await(t.Context(), group, "populated", 1),
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := errors.Join(killRounds(group), h.removeOnce(group, path)); err != nil {
		t.Errorf("kill and remove: %v", err)
	}
}

// TestKernelStats watches the counters of a process grow, with whatever controllers there are.
func TestKernelStats(t *testing.T) {
	h, path := newGroup(t)
	p := start(t, h, path, "echo")
	first, err := h.Stats(path)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "processor time", func() bool {
		p.say(t)
		p.hear(t)
		s, err := h.Stats(path)
		if err != nil {
			t.Fatal(err)
		}
		return s.CPU.Usage > first.CPU.Usage && s.CPU.Usage > 0
	})
}

func TestKernelStatsOfControllers(t *testing.T) {
	h, path := newGroup(t, "cpu", "memory", "pids")
	write(t, filepath.Join(h.root(), path, "memory.max"), "268435456")
	write(t, filepath.Join(h.root(), path, "pids.max"), "100")
	p := start(t, h, path, "echo")
	p.say(t)
	p.hear(t)
	s, err := h.Stats(path)
	if err != nil {
		t.Fatal(err)
	}
	if m := s.Memory; m == nil || m.Usage.Usage == 0 || m.Usage.Max < m.Usage.Usage || m.Usage.Limit != 268435456 || m.Stats["anon"] == 0 {
		t.Errorf("memory %+v", m)
	}
	if s.Pids == nil || s.Pids.Current == 0 || s.Pids.Limit != 100 {
		t.Errorf("pids %+v", s.Pids)
	}
	if s.CPU == nil || s.CPU.Usage == 0 {
		t.Errorf("cpu %+v", s.CPU)
	}
}

// TestKernelOOM lets the kernel kill a process for its memory, alone and together with its group.
func TestKernelOOM(t *testing.T) {
	h, path := newGroup(t, "memory")
	w := newWatcher(t, h)
	var quiet atomic.Int32
	_, other := newGroup(t, "memory")
	if err := w.Add(other, func() { quiet.Add(1) }); err != nil {
		t.Fatal(err)
	}
	for _, group := range []string{"0", "1"} {
		g := sub(t, h, path+"/"+group)
		write(t, filepath.Join(h.root(), path, "cgroup.subtree_control"), "+memory")
		dir := filepath.Join(h.root(), g)
		if _, err := os.Stat(filepath.Join(dir, memoryEvents)); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "memory.max"), "67108864")
		write(t, filepath.Join(dir, "memory.oom.group"), group)
		if swap := filepath.Join(dir, "memory.swap.max"); exists(swap) {
			write(t, swap, "0")
		}
		killed := make(chan struct{}, 10)
		if err := w.Add(g, func() { killed <- struct{}{} }); err != nil {
			t.Fatal(err)
		}
		p := start(t, h, g, "eat")
		p.say(t)
		<-killed
		p.ended(t, unix.SIGKILL)
		eventually(t, "end of the watch", func() bool { return !w.has(g) })
		s, err := h.Stats(g)
		if err != nil || s.Memory == nil || s.Memory.Usage.Failcnt == 0 {
			t.Errorf("stats %+v, %v", s, err)
		}
	}
	if n := quiet.Load(); n != 0 {
		t.Errorf("%d callbacks of another group", n)
	}
}

func TestKernelNoController(t *testing.T) {
	h, path := newGroup(t)
	if exists(filepath.Join(h.root(), path, memoryEvents)) {
		path = sub(t, h, path+"/a") // its parent gives it no controllers
	}
	if err := newWatcher(t, h).Add(path, func() {}); !errors.Is(err, errNoController) {
		t.Errorf("watch: %v", err)
	}
	s, err := h.Stats(path)
	if err != nil || s.CPU == nil || s.Memory != nil || s.Pids != nil {
		t.Errorf("stats %+v, %v", s, err)
	}
}
