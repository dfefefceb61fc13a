// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// holdings are what this program and its sandbox hold of the machine.
type holdings struct{ goroutines, descriptors, children, mounts, cgroups, files int }

func held(t *testing.T, p *pod) holdings {
	t.Helper()
	entries := func(dir string) int {
		all, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	tree := func(dirs ...string) (n int) {
		for _, dir := range dirs {
			if err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
				if dir != cgroupRoot || d.IsDir() {
					n++
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return holdings{
		goroutines:  pprof.Lookup("goroutine").Count(),
		descriptors: entries("/proc/self/fd"),
		children:    children(t),
		mounts:      strings.Count(string(mounts), "\n"),
		cgroups:     tree(cgroupRoot),
		files:       tree(p.dir, p.runtime.config.Root),
	}
}

// children counts the children of this program, zombies too.
func children(t *testing.T) int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			n++
		}
	}
	return n
}

// lives are the ways in which the leak test's containers live and end.
var lives = []struct {
	script string
	// started says whether it is, fails whether it cannot be created.
	started, fails bool
}{
	{script: "exec sleep 1000", started: true},
	{script: "cat; sleep 1000 & exit 4", started: true}, // waits for its input, and leaves a process behind
	{script: "exec sleep 1000"},
	{script: "trap '' TERM; yes", started: true},
	{fails: true},
}

// live has one container live, with four further processes.
func live(t *testing.T, p *pod, n int) {
	t.Helper()
	ctx := t.Context()
	id := fmt.Sprintf("c%d", n)
	kind := lives[n%len(lives)]
	c := busybox(id, kind.script)
	c.Spec.Process.Terminal = n%2 == 1
	if kind.fails {
		c.Spec.Process.Args = []string{"/none"}
	}
	err := p.CreateContainer(ctx, c)
	if kind.fails {
		if err == nil {
			t.Errorf("%s: a missing program was started", id)
		}
		return
	}
	if err == nil && kind.started {
		err = p.StartContainer(ctx, id)
	}
	if err != nil {
		t.Errorf("%s: %v", id, err)
		return
	}
	if kind.started {
		furtherProcesses(t, p, id)
	}
	if err := p.RemoveContainer(ctx, id, 0); err != nil {
		t.Errorf("%s: %v", id, err)
	}
}

// furtherProcesses runs seven more processes, so that there are four for each container, also for those that have none.
func furtherProcesses(t *testing.T, p *pod, id string) {
	t.Helper()
	ctx := t.Context()
	for i, process := range []*specs.Process{
		shell("exit 3"),
		shell("exit 3"),
		shell("sleep 1000 & exit 3"),
		{Args: []string{"/none"}},
		{Args: []string{"/busybox", "sh", "-c", "exit 3"}, Terminal: true},
		shell("cat"), // ends with its container
		{Args: []string{"/busybox", "sleep", "1000"}, Terminal: true},
	} {
		exec := fmt.Sprintf("exec%d", i)
		err := p.Exec(ctx, id, exec, process)
		if missing := process.Args[0] == "/none"; (err == nil) == missing {
			t.Errorf("%s/%s: %v", id, exec, err)
			return
		}
		if err != nil || i > 4 {
			continue
		}
		if status, err := p.Wait(ctx, id, exec); err != nil || status != 3 {
			t.Errorf("%s/%s: status %d, %v", id, exec, status, err)
		}
	}
}

// Hundreds of containers and thousands of processes leave nothing behind.
func TestNothingIsLeft(t *testing.T) {
	containers := sample(25, 5, 500)
	p := newPod(t)
	for n := range lives { // what is made once stays
		live(t, p, n)
	}
	settle := func() holdings {
		eventually(t, "no child is left", func() bool { return children(t) == 0 })
		return held(t, p)
	}
	before := settle()
	numbers := make(chan int)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := range numbers {
				live(t, p, n)
			}
		})
	}
	start := time.Now()
	for n := range containers {
		numbers <- n
	}
	close(numbers)
	wg.Wait()
	took := time.Since(start)
	after := settle()
	for deadline := time.Now().Add(time.Minute); after != before && time.Now().Before(deadline); after = settle() {
		time.Sleep(50 * time.Millisecond)
	}
	if after != before {
		t.Errorf("left behind: before %+v, after %+v", before, after)
		_ = pprof.Lookup("goroutine").WriteTo(t.Output(), 1)
	}
	execs := 0
	for n := range containers {
		if lives[n%len(lives)].started {
			execs += 7
		}
	}
	t.Logf("campaign: %d containers and %d further processes in %v leave nothing behind: %+v", containers, execs, took.Round(time.Millisecond), after)
	if p.Containers() != 0 || p.Processes() != 0 {
		t.Errorf("%d containers and %d processes are known", p.Containers(), p.Processes())
	}
}
