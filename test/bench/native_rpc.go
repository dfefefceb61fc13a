// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloister-cc/cloister/rpc/pb"
)

const (
	// requestTime is how long each number of callers asks.
	requestTime = time.Second
	// outputBytes is what a process writes, in 64 KiB blocks.
	outputBlocks, outputBytes = "4096", 4096 << 16
	outputRuns                = 5
)

// requests measures Check, which costs the agent nothing but the request itself, on one connection as the shim has it.
func (n *native) requests(ctx context.Context) error {
	check := func() error {
		_, err := n.client.Health().Check(ctx, &pb.CheckRequest{})
		return err
	}
	for range 1000 {
		if err := n.time("Check, round trip", check); err != nil {
			return err
		}
	}
	for _, callers := range []int{1, 8, 64} {
		errs := make([]error, callers)
		var done atomic.Int64
		var wg sync.WaitGroup
		start := time.Now()
		for i := range callers {
			wg.Go(func() {
				for errs[i] == nil && time.Since(start) < requestTime {
					errs[i] = check()
					done.Add(1)
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		n.add(fmt.Sprintf("Check, %d callers", callers), "1/s", int64(float64(done.Load())/time.Since(start).Seconds()))
	}
	return nil
}

// output measures what a container writes to its standard output, with reads as the shim does them and larger ones,
// against the same program with a pipe to this one.
func (n *native) output(ctx context.Context) error {
	program := []string{"dd", "if=/dev/zero", "bs=64k", "count=" + outputBlocks}
	for i := range outputRuns {
		for _, size := range []uint32{32 << 10, 64 << 10} {
			took, err := n.readContainer(ctx, fmt.Sprintf("output-%d-%d", i, size), size, program)
			if err != nil {
				return err
			}
			n.rate(fmt.Sprintf("stdout, reads of %d KiB", size>>10), took)
			if took, err = readPipe(ctx, filepath.Join(n.dir, "rootfs/bin/busybox"), int(size), program); err != nil {
				return err
			}
			n.rate(fmt.Sprintf("pipe, reads of %d KiB", size>>10), took)
		}
	}
	for _, size := range []string{"32", "64"} {
		n.add("stdout over pipe, reads of "+size+" KiB", "%",
			n.row("stdout, reads of "+size+" KiB").Median*100/max(n.row("pipe, reads of "+size+" KiB").Median, 1))
	}
	return nil
}

// processorTime is what the agent has used so far. Unlike the time that passes, it says something on a busy machine too.
func (n *native) processorTime() (time.Duration, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", n.pid))
	var total time.Duration
	for _, name := range threads {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // a thread that has ended
		}
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			return 0, fmt.Errorf("read %s: %w", name, err)
		}
		total += time.Duration(ns)
	}
	return total, err
}

func (t *table) rate(name string, took time.Duration) {
	t.add(name, "MB/s", int64(outputBytes/took.Seconds()/1e6))
}

func (n *native) readContainer(ctx context.Context, id string, size uint32, program []string) (took time.Duration, err error) {
	program = append([]string{"/bin/dd"}, program[1:]...)
	if err := n.session.CreateContainer(ctx, n.container(id, program...)); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := n.session.StartContainer(ctx, id); err != nil {
		return 0, err
	}
	before, err := n.processorTime()
	if err != nil {
		return 0, err
	}
	total, reads := 0, int64(0)
	for {
		r, err := n.client.Agent().ReadStdout(ctx, &pb.ReadStreamRequest{ContainerId: id, ExecId: id, Len: size})
		if err != nil {
			return 0, err
		}
		if total += len(r.GetData()); len(r.GetData()) == 0 {
			break
		}
		reads++
	}
	took = time.Since(start)
	after, err := n.processorTime()
	if err != nil {
		return 0, err
	}
	n.add(fmt.Sprintf("agent's CPU time of a read of %d KiB", size>>10), "µs", (after-before).Microseconds()/max(reads, 1))
	if total != outputBytes {
		return 0, fmt.Errorf("%d bytes were read, %d written", total, outputBytes)
	}
	_, err = n.session.Wait(ctx, id, "")
	return took, errors.Join(err, n.session.RemoveContainer(ctx, id))
}

// readPipe reads the same program's output from a pipe.
func readPipe(ctx context.Context, busybox string, size int, program []string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, busybox, program...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	buf := make([]byte, size)
	total := 0
	for err == nil {
		var n int
		n, err = out.Read(buf)
		total += n
	}
	took := time.Since(start)
	if !errors.Is(err, io.EOF) || total != outputBytes {
		return 0, fmt.Errorf("%d bytes were read, %d written: %w", total, outputBytes, err)
	}
	return took, cmd.Wait()
}
