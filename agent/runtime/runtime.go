// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
	// NoCgroups runs containers without control groups, for a machine on which none can be made.
	NoCgroups bool
	// Log may be nil.
	Log *slog.Logger
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
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
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

// cgroupManager makes crun use cgroupfs, for there is no systemd in the guest, or no control groups at all.
func (r *Runtime) cgroupManager() string {
	if r.config.NoCgroups {
		return "--cgroup-manager=disabled"
	}
	return "--cgroup-manager=cgroupfs"
}

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
		ExtraArgs: []string{r.cgroupManager()},
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
func (r *Runtime) Create(ctx context.Context, id, bundle string, stdio agent.Stdio) (started agent.Started, err error) {
	err = r.run(ctx, "create", func(ctx context.Context, c *call) error {
		return c.start(&started, stdio, func(stdio agent.Stdio, terminal *terminal, pidFile string) error {
			opts := &runc.CreateOpts{IO: files{stdio}, PidFile: pidFile}
			if terminal != nil {
				opts.ConsoleSocket = terminal
			}
			return c.Create(ctx, id, bundle, opts)
		})
	})
	return started, err
}

// start has f run the command that starts a process, and collects what it left.
func (c *call) start(started *agent.Started, stdio agent.Stdio, f func(agent.Stdio, *terminal, string) error) error {
	var t *terminal
	if stdio.Terminal {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer null.Close()
		if t, err = newTerminal(c.dir); err != nil {
			return err
		}
		defer t.close()
		stdio = agent.Stdio{Stdin: null, Stdout: null, Stderr: null}
	}
	pidFile := filepath.Join(c.dir, "pid")
	if err := f(stdio, t, pidFile); err != nil {
		return err
	}
	var err error
	if started.PID, err = readPID(pidFile); err != nil || t == nil {
		return err
	}
	started.Console, err = t.receive()
	return err
}

// Start implements agent.Runtime.
func (r *Runtime) Start(ctx context.Context, id string) error {
	return r.run(ctx, "start", func(ctx context.Context, c *call) error {
		return r.command(ctx, c, files{}, "start", id)
	})
}

// Exec implements agent.Runtime. It does without go-runc, which would write the process, and with it the environment,
// to a folder that an environment variable of the agent names.
func (r *Runtime) Exec(ctx context.Context, id string, process *specs.Process, stdio agent.Stdio) (started agent.Started, err error) {
	err = r.run(ctx, "exec", func(ctx context.Context, c *call) error {
		description, err := c.describeJSON("process.json", process)
		if err != nil {
			return err
		}
		return c.start(&started, stdio, func(stdio agent.Stdio, terminal *terminal, pidFile string) error {
			args := []string{"exec", "--process", description, "--detach", "--pid-file", pidFile}
			if terminal != nil {
				args = append(args, "--console-socket", terminal.Path())
			}
			return r.command(ctx, c, files{stdio}, append(args, id)...)
		})
	})
	return started, err
}

// Update implements agent.Runtime.
func (r *Runtime) Update(ctx context.Context, id string, resources *specs.LinuxResources) error {
	return r.run(ctx, "update", func(ctx context.Context, c *call) error {
		description, err := c.describeJSON("resources.json", resources)
		if err != nil {
			return err
		}
		return r.command(ctx, c, files{}, "update", "--resources", description, id)
	})
}

// describeJSON writes a file for the runtime that only root reads.
func (c *call) describeJSON(name string, v any) (path string, err error) {
	data, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	path = filepath.Join(c.dir, name)
	return path, os.WriteFile(path, data, 0o600)
}

// command runs a command of the runtime that go-runc does not offer as it is needed here. That collects the output of
// start and delete, which a hook's background process can hold open, and gives the error the runtime's path.
func (r *Runtime) command(ctx context.Context, c *call, io files, args ...string) error {
	global := []string{"--root", c.Root, "--log", c.Log, "--log-format", string(c.LogFormat), r.cgroupManager()}
	cmd := exec.CommandContext(ctx, c.Command, append(global, args...)...)
	io.Set(cmd)
	started, err := r.config.Reaper.Start(cmd)
	if err != nil {
		return err
	}
	if status, err := started.Wait(); err != nil || status != 0 {
		return errors.Join(err, &runc.ExitError{Status: status})
	}
	return nil
}

// Delete implements agent.Runtime. A runtime that was killed at work leaves a state that it cannot read itself; what
// lies in the state's folder is then dropped. The caller has killed the container's processes.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	state := filepath.Join(r.state, id)
	if _, err := os.Lstat(state); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	err := r.run(ctx, "delete", func(ctx context.Context, c *call) error {
		return r.command(ctx, c, files{}, "delete", "--force", id)
	})
	if err == nil {
		return nil
	}
	r.config.Log.Warn("the runtime cannot delete a container, its state is dropped", "container", id, "error", err)
	if rerr := os.RemoveAll(state); rerr != nil {
		return errors.Join(err, rerr)
	}
	return nil
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
