// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloister-cc/cloister/image"
	"github.com/cloister-cc/cloister/image/sign"
)

// pullEnv is the environment variable by which the program knows that it is the process that pulls, and nothing else.
const pullEnv = "CLOISTER_BENCH_PULL"

// What cmd/cloister-agent sets, so that memory and time are the agent's.
const (
	agentGCPercent   = 400
	agentMemoryLimit = 64 << 20
)

// pullJob is what that process is given on its standard input: images to pull from a CA's registry into a new store in
// Dir.
type pullJob struct {
	Dir, CA  string
	Key      []byte
	Images   []string
	Together bool
	// Profile is a file for a CPU profile; empty means none.
	Profile string
}

// pullResult is what it says on its standard output: how long each image took until its root file system was mounted, and
// all of them, the processor time of it, and the memory of the process before and at most.
type pullResult struct {
	Took       []time.Duration
	All, CPU   time.Duration
	Idle, Peak int64 // KiB
}

// guestConfig is the configuration of the image service as the agent has it, with a policy that asks for no signatures.
func guestConfig(j pullJob, ca *x509.CertPool) (image.Config, error) {
	policy, err := sign.New(sign.Config{Policy: []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`)})
	return image.Config{
		Root: filepath.Join(j.Dir, "images"), CA: ca, Policy: policy,
		Keys: func(context.Context, string) ([]byte, error) { return bytes.Clone(j.Key), nil },
	}, err
}

// pullHere is what the process that pulls does.
func pullHere(ctx context.Context) (err error) {
	debug.SetGCPercent(agentGCPercent)
	debug.SetMemoryLimit(agentMemoryLimit)
	var j pullJob
	if err := json.NewDecoder(os.Stdin).Decode(&j); err != nil {
		return err
	}
	pem, err := os.ReadFile(j.CA)
	if err != nil {
		return err
	}
	ca := x509.NewCertPool()
	ca.AppendCertsFromPEM(pem)
	config, err := guestConfig(j, ca)
	if err != nil {
		return err
	}
	s, err := image.New(config)
	if err != nil {
		return err
	}
	defer s.Close()
	r := &pullResult{Took: make([]time.Duration, len(j.Images))}
	if r.Idle, err = idleMemory(); err != nil {
		return err
	}
	if j.Profile != "" {
		f, err := os.Create(j.Profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if err := pullAll(ctx, s, j, r); err != nil {
		return err
	}
	if r.Peak, err = memoryOf("self", "VmHWM"); err != nil {
		return err
	}
	for i := range j.Images {
		if err := s.Unmount(ctx, fmt.Sprint("c", i)); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func pullAll(ctx context.Context, s *image.Service, j pullJob, r *pullResult) error {
	group, ctx := errgroup.WithContext(ctx)
	if !j.Together {
		group.SetLimit(1)
	}
	start := time.Now()
	for i, ref := range j.Images {
		group.Go(func() error {
			id := fmt.Sprint("c", i)
			target := filepath.Join(j.Dir, id)
			if err := os.Mkdir(target, 0o755); err != nil {
				return err
			}
			began := time.Now()
			_, err := s.Mount(ctx, id, ref, target)
			r.Took[i] = time.Since(began)
			return err
		})
	}
	err := group.Wait()
	r.All = time.Since(start)
	return err
}

// idleMemory collects garbage and makes the kernel forget the peak so far.
func idleMemory() (int64, error) {
	runtime.GC()
	debug.FreeOSMemory()
	const forgetPeak = "5" // see proc_pid_clear_refs(5)
	if err := os.WriteFile("/proc/self/clear_refs", []byte(forgetPeak), 0); err != nil {
		return 0, fmt.Errorf("reset the peak of memory: %w", err)
	}
	return memoryOf("self", "VmRSS")
}

// memoryOf returns a line of a process's status in KiB.
func memoryOf(pid, name string) (int64, error) {
	status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(status) {
		fields := bytes.Fields(line)
		if len(fields) == 3 && string(fields[0]) == name+":" {
			return strconv.ParseInt(string(fields[1]), 10, 64)
		}
	}
	return 0, fmt.Errorf("/proc/%s/status has no %s", pid, name)
}

// processorTime is what a command has used, with all that it has waited for. Unlike the time that passes, it says something
// on a busy machine too.
func processorTime(cmd *exec.Cmd) time.Duration {
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// pull runs a job in a process of its own, with an empty folder.
func (b *imageBench) pull(ctx context.Context, fs scratch, j pullJob) (_ *pullResult, err error) {
	if j.Dir, err = fs.folder(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, fs.leave(j.Dir)) }()
	j.CA, j.Key = b.registry.pki.CA, b.key
	if b.o.profile != "" {
		b.profiles++
		j.Profile = fmt.Sprintf("%s.%d", b.o.profile, b.profiles)
	}
	in, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), pullEnv+"=1")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("pull %d images: %w", len(j.Images), err)
	}
	r := new(pullResult)
	err = json.Unmarshal(out, r)
	r.CPU = processorTime(cmd)
	return r, err
}
