// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent/boot"
	"github.com/cloister-cc/cloister/agent/config"
	"github.com/cloister-cc/cloister/agent/logport"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/initramfs/layout"
)

// unsealedDir is where an agent that is not sealed keeps what it needs. Its path is short for the sake of overlay mounts.
const unsealedDir = boot.RunDir

// defaultPolicyFile is where the guest image of Kata has its request policy.
const defaultPolicyFile = "/etc/kata-opa/default-policy.rego"

// guestImage is the agent as init of a guest image that is not ours.
func (a arguments) guestImage(ctx context.Context, log *slog.Logger) error {
	if err := boot.Init(); err != nil {
		return err
	}
	return a.serve(ctx, log, true)
}

// plainProcess is the agent under systemd, or as a process of a build host.
func (a arguments) plainProcess() error {
	if os.Geteuid() != 0 {
		return errors.New("it starts containers, so it needs root")
	}
	if err := ownMountNamespace(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	return a.serve(ctx, slog.New(consoleHandler(slog.LevelInfo)), false)
}

// serve reads the settings and serves; pid1 says that the whole machine is the agent's.
func (a arguments) serve(ctx context.Context, log *slog.Logger, pid1 bool) error {
	c, warnings, err := a.settings()
	var logs *logport.Fanout
	if c != nil {
		log, logs = newLog(c.LogLevel, c.LogPort)
	}
	for _, w := range warnings {
		log.Warn("setting", "source", w.Source, "setting", w.Setting, "effect", w.Text)
	}
	if err != nil {
		return err
	}
	reaper, err := proc.New(log)
	if err != nil {
		return err
	}
	defer func() { _ = reaper.Close() }() // the process ends
	s, err := a.setup(ctx, c, reaper, log)
	if err != nil {
		return err
	}
	// A unix socket is for a shim on the same machine, which is then not the agent's.
	s.guest = pid1 || strings.HasPrefix(c.ServerAddr, "vsock://")
	s.side.logs = logs
	log.Warn("this agent is not sealed: its host can read and change everything, and may send every request")
	return serve(ctx, s, reaper, log)
}

// settings reads them from where Kata's agent does.
func (a arguments) settings() (*config.Config, []config.Warning, error) {
	f, err := os.Open("/proc/cmdline")
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	line, err := io.ReadAll(io.LimitReader(f, config.MaxCommandLine+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the kernel command line: %w", err)
	}
	c, warnings, err := config.Load(config.Options{CommandLine: string(line), File: a.config, Env: os.LookupEnv})
	if err != nil {
		return nil, warnings, err
	}
	return c, warnings, refusePolicy(c)
}

// refusePolicy stops an agent that was given a policy that it cannot enforce: without it, every request would pass.
func refusePolicy(c *config.Config) error {
	file := c.PolicyFile
	if file == "" {
		file = defaultPolicyFile
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return fmt.Errorf("there is a request policy, %s, and this version enforces none: remove it to let every request pass", file)
}

// setup makes what serving needs on a machine that is not ours.
func (a arguments) setup(ctx context.Context, c *config.Config, reaper *proc.Reaper, log *slog.Logger) (setup, error) {
	runtime := a.runtime
	if runtime == "" {
		found, err := proc.LookPath("crun")
		if err != nil {
			return setup{}, fmt.Errorf("find the OCI runtime: %w: install crun, or name it by --runtime", err)
		}
		runtime = found
	}
	version, err := reaper.Run(ctx, runtime, "--version")
	if err != nil {
		return setup{}, fmt.Errorf("run %s: %w", runtime, err)
	}
	if err := makeFolders(); err != nil {
		return setup{}, err
	}
	pauseRootfs, err := makePause()
	if err != nil {
		return setup{}, fmt.Errorf("make the pause image: %w", err)
	}
	images, err := a.images(ctx, c, log, unsealedDir)
	if err != nil {
		return setup{}, err
	}
	images.PauseRootfs = pauseRootfs
	return setup{
		address:     c.ServerAddr,
		policy:      layout.PolicyAllowAll,
		images:      images,
		pullTimeout: c.ImagePullTimeout,
		runtime:     runtime,
		stateDir:    filepath.Join(unsealedDir, "crun"),
		seccomp:     strings.Contains(version, "+SECCOMP"),
		cgroups:     findCgroups(log),
		privileged:  true,
		pipeSize:    int(c.ContainerPipeSize),
		anyHookPath: true,
		cdiTimeout:  c.CDITimeout,
		visibleCDI:  c.VisibleCDIDevices,
		side:        side{logPort: c.LogPort, console: c.DebugConsole, consolePort: c.DebugConsolePort, tracing: c.Tracing},
	}, nil
}

// makePause makes the root file system of the pause image, whose program is this one.
func makePause() (rootfs string, err error) {
	rootfs = filepath.Join(unsealedDir, "pause")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return "", err
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer self.Close()
	out, err := os.OpenFile(filepath.Join(rootfs, layout.PausePath), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, self)
	return rootfs, errors.Join(err, out.Close())
}
