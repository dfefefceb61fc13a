// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	stdlog "log"
	"log/slog"
	"net"
	"path/filepath"
	"runtime/debug"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/cdi"
	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/agent/hooks"
	"github.com/cloister-cc/cloister/agent/kernel"
	"github.com/cloister-cc/cloister/agent/netdev"
	"github.com/cloister-cc/cloister/agent/oci"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/agent/runtime"
	"github.com/cloister-cc/cloister/attest"
	"github.com/cloister-cc/cloister/image"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/version"
	"github.com/cloister-cc/cloister/rpc"
	"github.com/cloister-cc/cloister/storage/share"
	"github.com/cloister-cc/cloister/storage/volume"
)

// shutdownTimeout bounds how long the answer to the last request may take to leave.
const shutdownTimeout = 5 * time.Second

// setup is what serving needs to know, whatever it was read from. The zero value denies every request.
type setup struct {
	// address is where the agent API is served, in the form of rpc.Listen.
	address string
	// policy decides on requests: layout.PolicyDenyAll, also when empty, or layout.PolicyAllowAll.
	policy string
	images image.Config
	// pullTimeout bounds the pull of an image; 0 bounds it by the request alone.
	pullTimeout time.Duration
	// runtime is the OCI runtime's program, stateDir the folder for its state.
	runtime, stateDir string
	// seccomp says that the runtime applies seccomp profiles.
	seccomp bool
	// cgroups are nil on a machine where none can be made.
	cgroups *cgroup.Hierarchy
	// guest says that the machine is the agent's own.
	guest bool
	// privileged allows privileged containers.
	privileged bool
	pipeSize   int
	// hookPath is the one folder of hooks that the host may name; anyHookPath lets it name each.
	hookPath    string
	anyHookPath bool
	cdiTimeout  time.Duration
	// visibleCDI lets a container's environment name devices, too.
	visibleCDI bool
	// openSecret opens sealed secrets; nil opens none.
	openSecret func(ctx context.Context, text string) (string, error)
	side       side
}

// gcPercent lets the heap grow to five times what is in use before it is swept. Half of the time of passing a
// container's output on was garbage collection at Go's 100: the heap of an agent is small, so that it came every few
// reads. It costs at most about 15 MB while output flows, and nothing when idle.
const gcPercent = 400

// memoryLimit is from where on garbage is collected more often than that, in bytes. While images are pulled the heap would
// grow to five times their windows and buffers otherwise. It is no bound: Go spends at most half of the time on it.
const memoryLimit = 64 << 20

// serve runs the agent API until the sandbox has been destroyed.
func serve(ctx context.Context, s setup, reaper *proc.Reaper, log *slog.Logger) error {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// net/http tells about odd servers by the standard logger, whose lines would go to the console as they are.
	stdlog.SetOutput(slog.NewLogLogger(log.Handler(), slog.LevelDebug).Writer())
	s.images.Measure = measure(attest.NewLog(), log)
	images, err := image.New(s.images)
	clear(s.images.Auth)
	if err != nil {
		return err
	}
	defer images.Close()
	sandbox, closers, err := newSandbox(s, images, reaper, log)
	if err != nil {
		return err
	}
	defer closers.close(log)
	m, err := newMachine(s, sandbox, images)
	if err != nil {
		return err
	}
	tracer := s.side.tracer(log)
	defer func() { _ = tracer.Close(ctx) }() // what is left of spans is dropped with the machine
	server, err := rpc.NewServer(rpc.Config{
		Sandbox: sandbox, Machine: m, Gate: gate(s.policy), Log: log, Version: version.String(), Wrap: wrap(tracer, m.metrics),
	})
	if err != nil {
		return err
	}
	listener, err := rpc.Listen(s.address)
	if err != nil {
		return err
	}
	stopSide, err := s.side.start(ctx, reaper, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer stopSide()
	return run(ctx, server, listener, sandbox, s, log)
}

func run(ctx context.Context, server *rpc.Server, l net.Listener, sandbox *agent.Sandbox, s setup, log *slog.Logger) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(ctx, l) }()
	log.Info("agent API is served", "address", s.address, "policy", policyName(s.policy), "up_ms", uptime().Milliseconds())
	logMemory(ctx, log, "idle")
	select {
	case <-sandbox.Done():
		logMemory(ctx, log, "end")
	case <-ctx.Done():
		return errors.Join(server.Close(), <-failed, sandbox.Destroy(context.WithoutCancel(ctx)))
	case err := <-failed:
		return errors.Join(errors.New("the agent API ended by itself"), err, sandbox.Destroy(context.WithoutCancel(ctx)))
	}
	ctx, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		log.Warn("server did not shut down in order", "error", err)
	}
	return nil
}

// closers are what is to be closed at the end, the last first.
type closers []func() error

func (c closers) close(log *slog.Logger) {
	for i := range c {
		if err := c[len(c)-1-i](); err != nil {
			log.Warn("not everything was closed in order", "error", err)
		}
	}
}

func newSandbox(s setup, images *image.Service, reaper *proc.Reaper, log *slog.Logger) (_ *agent.Sandbox, c closers, err error) {
	defer func() {
		if err != nil {
			c.close(log)
			c = nil
		}
	}()
	crun, err := runtime.New(runtime.Config{Command: s.runtime, Root: s.stateDir, Reaper: reaper, NoCgroups: s.cgroups == nil, Log: log})
	if err != nil {
		return nil, c, err
	}
	links := netdev.New()
	if err := links.LoopbackUp(); err != nil {
		return nil, c, err
	}
	config := agent.Config{
		Images: timedImages{images, s.pullTimeout}, Runtime: crun, Kernel: kernel.Linux{}, Network: links, Reaper: reaper, Log: log,
		OpenSecret: s.openSecret, Hooks: s.hooks, Devices: s.devices, Privileged: s.privileged, PipeSize: s.pipeSize,
		HugePages: kernel.Machine{}.HugePages(),
	}
	more, err := addStorages(&config)
	c = append(c, more...)
	if err != nil {
		return nil, c, err
	}
	more, err = addCgroups(&config, s, log)
	c = append(c, more...)
	if err != nil {
		return nil, c, err
	}
	sandbox, err := agent.NewSandbox(config)
	return sandbox, c, err
}

// addStorages gives a sandbox the files from the host, and volumes.
func addStorages(config *agent.Config) (closers, error) {
	root := filepath.Join(agent.DefaultRunDir, oci.SharedDir)
	dir, err := share.Open(root, 0)
	if err != nil {
		return nil, err
	}
	config.Share = shared{dir, share.NewStale(root, share.KernelMounts())}
	volumes, err := volume.New(volume.Config{RunDir: agent.DefaultRunDir})
	if err != nil {
		return closers{dir.Close}, err
	}
	config.Volumes = storages{volumes}
	return closers{dir.Close}, nil
}

// addCgroups gives a sandbox the control groups of the machine, if it has them.
func addCgroups(config *agent.Config, s setup, log *slog.Logger) (closers, error) {
	config.Controllers = []string{}
	if s.cgroups == nil {
		return nil, nil
	}
	controllers, err := s.cgroups.Controllers()
	if err != nil {
		return nil, err
	}
	watcher, err := cgroup.NewWatcher(*s.cgroups, log)
	if err != nil {
		return nil, err
	}
	config.Cgroups, config.OOM, config.Controllers = s.cgroups, watcher, append(config.Controllers, controllers...)
	return closers{watcher.Close}, nil
}

// hooks finds the guest's hooks in the folder that the host names, if it may name it.
func (s setup) hooks(dir string) (*specs.Hooks, error) {
	if !s.anyHookPath && dir != s.hookPath {
		return nil, errors.New("the boot config does not name this folder")
	}
	return hooks.Find("/", dir)
}

// devices adds the devices that a container's annotations name, and its environment if it may.
func (s setup) devices(ctx context.Context, spec *specs.Spec, annotations map[string]string) error {
	names, err := cdi.Annotated(annotations)
	if err != nil {
		return err
	}
	if s.visibleCDI {
		more, err := cdi.Visible(spec.Process.Env)
		if err != nil {
			return err
		}
		names = append(names, more...)
	}
	return cdi.InjectNamed(ctx, spec, names, cdi.DefaultDirs(), s.cdiTimeout)
}

// gate returns the one for a policy; what is not known denies.
func gate(policy string) rpc.Gate {
	if policy == layout.PolicyAllowAll {
		return rpc.AllowAll
	}
	return rpc.DenyAll
}

func policyName(policy string) string {
	if policy == "" {
		return layout.PolicyDenyAll
	}
	return policy
}
