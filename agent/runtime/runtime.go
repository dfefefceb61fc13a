// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	runc "github.com/containerd/go-runc"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/proc"
)

// DefaultTimeout bounds a command of the runtime for which Config sets nothing else.
const DefaultTimeout = 60 * time.Second

// Config says which runtime is run and how.
type Config struct {
	// Command is the path of crun.
	Command string
	// Root is a folder for the runtime's state and what is exchanged with it. It must not outlive the guest, so it
	// belongs on a tmpfs. It is made if it is not there.
	Root string
	// Reaper starts the commands.
	Reaper *proc.Reaper
	// Timeout bounds each command; 0 means DefaultTimeout.
	Timeout time.Duration
}

// Runtime runs crun. Its methods may be called concurrently.
type Runtime struct {
	config          Config
	state, exchange string
}

var _ agent.Runtime = (*Runtime)(nil)

// New returns a Runtime. It sets go-runc's package variable Monitor, see the package comment.
func New(c Config) (*Runtime, error) {
	if c.Command == "" || c.Root == "" || c.Reaper == nil {
		return nil, errors.New("new runtime: Command, Root and Reaper are required")
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	r := &Runtime{config: c, state: filepath.Join(c.Root, "state"), exchange: filepath.Join(c.Root, "exchange")}
	for _, dir := range []string{r.state, r.exchange} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("new runtime: %w", err)
		}
	}
	runc.Monitor = monitor{reaper: c.Reaper}
	return r, nil
}

// cgroupManager makes crun use cgroupfs: there is no systemd in the guest.
const cgroupManager = "--cgroup-manager=cgroupfs"

// call is one command of the runtime, with a folder of its own for what is exchanged.
type call struct {
	runc.Runc
	dir string
}

// run calls f, which runs one command, under a context that does not end with the caller's, and adds what the
// runtime logged to its error.
func (r *Runtime) run(ctx context.Context, what string, f func(ctx context.Context, c *call) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("runtime %s: %w", what, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.config.Timeout)
	defer cancel()
	dir, err := os.MkdirTemp(r.exchange, what)
	if err != nil {
		return fmt.Errorf("runtime %s: %w", what, err)
	}
	c := &call{dir: dir, Runc: runc.Runc{
		Command:   r.config.Command,
		Root:      r.state,
		Log:       filepath.Join(dir, "log.json"),
		LogFormat: runc.JSON,
		ExtraArgs: []string{cgroupManager},
	}}
	err = f(ctx, c)
	if err != nil {
		err = describe(ctx, what, err, c.Log)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// describe makes an error of a failed command and its log.
func describe(ctx context.Context, what string, err error, log string) error {
	var exit *runc.ExitError
	text := readLog(log)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("runtime %s: killed: %w: %s", what, ctx.Err(), text)
	case text != "":
		return fmt.Errorf("runtime %s: %s", what, text)
	case errors.As(err, &exit):
		return fmt.Errorf("runtime %s: %w, and nothing in its log", what, exit)
	}
	return fmt.Errorf("runtime %s: %w", what, err)
}

// Create implements agent.Runtime.
func (r *Runtime) Create(ctx context.Context, id, bundle string, stdio agent.Stdio) (pid int, err error) {
	err = r.run(ctx, "create", func(ctx context.Context, c *call) error {
		pidFile := filepath.Join(c.dir, "pid")
		err := c.Create(ctx, id, bundle, &runc.CreateOpts{IO: files{stdio}, PidFile: pidFile})
		if err != nil {
			return err
		}
		pid, err = readPID(pidFile)
		return err
	})
	return pid, err
}

// Start implements agent.Runtime.
func (r *Runtime) Start(ctx context.Context, id string) error {
	return r.run(ctx, "start", func(ctx context.Context, c *call) error { return c.Start(ctx, id) })
}

// Exec implements agent.Runtime. It does without go-runc, which would write the process, and with it the environment,
// to a folder that an environment variable of the agent names.
func (r *Runtime) Exec(ctx context.Context, id, _ string, process *specs.Process, stdio agent.Stdio) (pid int, err error) {
	err = r.run(ctx, "exec", func(ctx context.Context, c *call) error {
		data, err := json.Marshal(process)
		if err != nil {
			return err
		}
		description, pidFile := filepath.Join(c.dir, "process.json"), filepath.Join(c.dir, "pid")
		if err := os.WriteFile(description, data, 0o600); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, c.Command, "--root", c.Root, "--log", c.Log, "--log-format", string(c.LogFormat), cgroupManager,
			"exec", "--process", description, "--detach", "--pid-file", pidFile, id)
		files{stdio}.Set(cmd)
		started, err := r.config.Reaper.Start(cmd)
		if err != nil {
			return err
		}
		if status, err := started.Wait(); err != nil || status != 0 {
			return errors.Join(err, &runc.ExitError{Status: status})
		}
		pid, err = readPID(pidFile)
		return err
	})
	return pid, err
}

// Kill implements agent.Runtime.
func (r *Runtime) Kill(ctx context.Context, id string, signal int, all bool) error {
	return r.run(ctx, "kill", func(ctx context.Context, c *call) error {
		return c.Kill(ctx, id, signal, &runc.KillOpts{All: all})
	})
}

// Delete implements agent.Runtime.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if _, err := os.Lstat(filepath.Join(r.state, id)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return r.run(ctx, "delete", func(ctx context.Context, c *call) error {
		return c.Delete(ctx, id, &runc.DeleteOpts{Force: true})
	})
}

// readPID reads the file that the runtime wrote the pid of a process to.
func readPID(path string) (int, error) {
	data, err := readBounded(path, 32)
	if err != nil {
		return 0, fmt.Errorf("read pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("read pid: %q is none", data)
	}
	return pid, nil
}
