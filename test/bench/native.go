// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/internal/testbed"
	"github.com/cloister-cc/cloister/test/story"
)

const (
	// outerNamespace is the environment variable by which the program, started anew in a mount namespace of its own, knows
	// the one that it comes from.
	outerNamespace = "CLOISTER_BENCH_MOUNT_NAMESPACE"
	// agentNamespace keeps the agent from making a mount namespace of its own, see cmd/cloister-agent: it shares this
	// program's, so that the bare runtime can be given the same root file systems.
	agentNamespace = "CLOISTER_FORMER_MOUNT_NAMESPACE"
	// agentRunDir and agentDir are where an agent that is a plain process keeps its files.
	agentRunDir, agentDir = "/run/kata-containers", "/run/cloister"
	sandboxID             = "bench"
)

// native is the agent as a plain process of this machine, and what its figures are compared with.
type native struct {
	*table
	dir, agent, crun string
	pid              int
	client           *client.Client
	session          *ctl.Session
	image            string
}

// measureNative measures the agent as a process of this machine.
func measureNative(ctx context.Context) (t *table, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the agent as a process of this machine is measured as root only, since it starts containers; " +
			"a guest can be measured by any user: go run ./test/bench --arch s390x")
	}
	if os.Getenv(outerNamespace) == "" {
		return nil, inNamespace(ctx)
	}
	for _, dir := range []string{agentRunDir, agentDir} { // of another agent of this machine
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return nil, fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil { // for the bare runtime's containers
		return nil, err
	}
	dir, err := os.MkdirTemp("", "cloister-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	n := &native{table: &table{Title: "agent as a process of this machine (" + runtime.GOARCH + ")"}, dir: dir}
	stop, err := n.start(ctx)
	if err != nil {
		return nil, err
	}
	err = n.all(ctx)
	return n.table, errors.Join(err, stop())
}

// inNamespace runs this program anew in a mount namespace of its own.
func inNamespace(ctx context.Context) error {
	current, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), outerNamespace+"="+current)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// start starts an agent with a sandbox, and something for it to pull.
func (n *native) start(ctx context.Context) (stop func() error, err error) {
	bed, err := testbed.Setup(ctx, testbed.Options{
		Arch: runtime.GOARCH, CacheDir: os.Getenv("CLOISTER_CACHE"), Progress: func(m string) { fmt.Fprintln(os.Stderr, m) },
	})
	if err != nil {
		return nil, fmt.Errorf("what the agent needs on this machine: %w", err)
	}
	n.agent, n.crun = filepath.Join(n.dir, "cloister-agent"), bed.Crun
	if err := story.GoBuild(ctx, "", n.agent, "github.com/cloister-cc/cloister/cmd/cloister-agent"); err != nil {
		return nil, err
	}
	endImage, err := n.serveImage(ctx, bed.Busybox)
	if err != nil {
		return nil, err
	}
	endAgent, err := n.startAgent(ctx)
	if err != nil {
		return nil, errors.Join(err, endImage())
	}
	return func() error {
		return errors.Join(n.session.DestroySandbox(context.WithoutCancel(ctx)), n.client.Close(), endAgent(), endImage())
	}, nil
}

func (n *native) startAgent(ctx context.Context) (end func() error, err error) {
	log, err := os.Create(filepath.Join(n.dir, "agent.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the agent has it
	address := "unix://" + filepath.Join(n.dir, "agent.sock")
	cmd := exec.Command(n.agent, "--runtime", n.crun) //nolint:noctx // it ends with its sandbox
	cmd.Env = append(os.Environ(), "KATA_AGENT_SERVER_ADDR="+address, agentNamespace+"="+os.Getenv(outerNamespace))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	n.pid = cmd.Process.Pid
	end = func() error {
		if err := cmd.Wait(); err != nil {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("agent: %w\n%s", err, text[max(0, len(text)-4000):])
		}
		return nil
	}
	kill := func(err error) error { return errors.Join(err, cmd.Process.Kill(), end()) }
	if n.client, err = client.DialReady(ctx, address); err != nil {
		return nil, kill(err)
	}
	if err := n.memory("idle"); err != nil {
		return nil, kill(err)
	}
	n.session = ctl.NewSession(n.client)
	if err := n.session.CreateSandbox(ctx, sandboxID, "", nil); err != nil {
		return nil, kill(err)
	}
	return end, nil
}

// serveImage makes an image of busybox and serves it as a registry does, without TLS on loopback.
func (n *native) serveImage(ctx context.Context, busybox string) (end func() error, err error) {
	rootfs, layout := filepath.Join(n.dir, "rootfs"), filepath.Join(n.dir, "layout")
	if err := story.BusyboxRootfs(rootfs, busybox, nil); err != nil {
		return nil, err
	}
	manifest, err := imagecrypt.FromRootfs(ctx, imagecrypt.Options{
		Rootfs: rootfs, Arch: runtime.GOARCH, Output: layout, Config: ocispec.ImageConfig{Cmd: []string{"/bin/sh"}},
	})
	if err != nil {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n.image = l.Addr().String() + "/bench/busybox:1"
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // G112: only the agent connects
		serveBlob(w, r, layout, manifest)
	})}
	go func() { _ = server.Serve(l) }() // until end
	return server.Close, nil
}

func serveBlob(w http.ResponseWriter, r *http.Request, layout string, manifest ocispec.Descriptor) {
	kind, name, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/bench/busybox/"), "/")
	d := digest.Digest(name)
	switch {
	case r.URL.Path == "/v2/":
		return
	case ok && kind == "manifests":
		d = manifest.Digest
		w.Header().Set("Content-Type", manifest.MediaType)
	case !ok || kind != "blobs" || d.Validate() != nil:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeFile(w, r, filepath.Join(layout, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())) //nolint:gosec // G703: d is valid
}

// all measures everything.
func (n *native) all(ctx context.Context) error {
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"requests", n.requests}, {"life of a container", n.life}, {"exec", n.execs}, {"output", n.output}, {"many containers", n.many},
	} {
		fmt.Fprintln(os.Stderr, "measuring:", part.name)
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	info, err := os.Stat(n.agent)
	if err != nil {
		return err
	}
	n.add("size of agent", "KiB", info.Size()>>10)
	return nil
}
