// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/rpc/pb"
)

const streamsLong = "With --stdin, standard input goes to the process, and its end ends the process's input. With --tty, the process has a\n" +
	"terminal. Both together are for a shell: keys, Ctrl-C too, go to the guest as they are typed, and the window's size too.\n" +
	"That needs a terminal as standard input; from a pipe or file, give --stdin alone."

// streamFlags are the flags that say what becomes of the standard streams.
type streamFlags struct{ stdin, tty bool }

func (f *streamFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.stdin, "stdin", "i", false, "copy standard input to the process")
	cmd.Flags().BoolVarP(&f.tty, "tty", "t", false, "use a terminal")
}

// streams returns what the flags ask for. It is a usage error to ask for keys from what has none.
func (f *streamFlags) streams(cmd *cobra.Command) (ctl.Streams, error) {
	st := ctl.Streams{Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr()}
	if !f.stdin {
		return st, nil
	}
	st.Stdin = cmd.InOrStdin()
	if f.tty {
		terminal, ok := terminalOf(st.Stdin)
		if !ok {
			return st, &usageError{cmd: cmd.CommandPath(), err: errors.New("standard input is no terminal: leave out --tty")}
		}
		st.Terminal = terminal
	}
	return st, nil
}

// setRun has a run use the streams.
func (f *streamFlags) setRun(cmd *cobra.Command, o *ctl.RunOptions) error {
	st, err := f.streams(cmd)
	if err != nil {
		return err
	}
	o.Stdin, o.Stdout, o.Stderr, o.Terminal = st.Stdin, st.Stdout, st.Stderr, st.Terminal
	p := &o.Container.Process
	if len(o.Exec.Args) > 0 {
		p = &o.Exec
	}
	f.setProcess(cmd, p)
	return nil
}

// setProcess gives a process to be started its terminal.
func (f *streamFlags) setProcess(cmd *cobra.Command, p *ctl.Process) {
	if f.tty {
		p.Terminal, p.Size = true, localSize(cmd)
	}
}

// terminalOf returns the terminal that a stream of the command is; false if it is none.
func terminalOf(stream any) (*ctl.Terminal, bool) {
	file, ok := stream.(*os.File)
	if !ok {
		return nil, false
	}
	return ctl.NewTerminal(file)
}

// localSize is the size of the terminal in which the command runs, if it runs in one.
func localSize(cmd *cobra.Command) ctl.Size {
	for _, stream := range []any{cmd.InOrStdin(), cmd.OutOrStdout()} {
		if t, ok := terminalOf(stream); ok {
			return t.Size()
		}
	}
	return ctl.Size{}
}

// hintError is an error with what to do about it.
type hintError struct {
	error
	hint string
}

// Unwrap returns the error.
func (e *hintError) Unwrap() error { return e.error }

// Hint returns the hint.
func (e *hintError) Hint() string { return e.hint }

// withoutTerminal adds the hint to the error of who wanted a terminal of a process that has none.
func withoutTerminal(err error) error {
	if _, ok := errors.AsType[*ctl.NoTerminalError](err); ok {
		return &hintError{err, "leave out --tty"}
	}
	return err
}

const execIDUsage = "id of a process that exec has started; empty is the container's own"

func (c *ctlCommand) exec() *cobra.Command {
	var execID string
	var p ctl.Process
	var flags streamFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] ID -- COMMAND...",
		Short: "Run a process in a container, show its output and exit with its status",
		Long:  "exec runs a process in a running container, shows its output until it ends and exits with its status.\n\n" + streamsLong,
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.Args = args[1:]
			st, err := flags.streams(cmd)
			if err != nil {
				return err
			}
			flags.setProcess(cmd, &p)
			if execID == "" {
				execID = "exec-" + strings.ToLower(rand.Text()[:10])
			}
			return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
				if err := s.Exec(ctx, args[0], execID, p); err != nil {
					return err
				}
				return interact(ctx, s, args[0], execID, st)
			})
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&execID, "exec-id", "", "id of the new process (default: one that no other has)")
	cmd.Flags().StringArrayVar(&p.Env, "env", nil, "NAME=VALUE (may be repeated)")
	cmd.Flags().StringVar(&p.Cwd, "cwd", "/", "working directory")
	return cmd
}

// interact connects the streams of a process until it ends, and returns its status as an error.
func interact(ctx context.Context, s *ctl.Session, id, execID string, st ctl.Streams) error {
	if err := s.Interact(ctx, id, execID, st); err != nil {
		return withoutTerminal(err)
	}
	status, err := s.Wait(ctx, id, execID)
	if err != nil {
		return err
	}
	return statusError(status)
}

func (c *ctlCommand) attach() *cobra.Command {
	var execID string
	var flags streamFlags
	cmd := &cobra.Command{
		Use:   "attach [flags] ID",
		Short: "Show the output of a container or process until it ends and exit with its status",
		Long: "attach shows the output of a container, or of a process that exec has started, until it ends, and exits with its\n" +
			"status. The output so far is not shown, unless nobody has read it.\n\n" +
			"With --stdin, standard input goes to the process. With --tty too, for a process that has a terminal, keys go to the\n" +
			"guest as they are typed; Ctrl-] leaves, and the process goes on.",
		Args: cobra.ExactArgs(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		st, err := flags.streams(cmd)
		if err != nil {
			return err
		}
		if st.Terminal != nil {
			st.Stdin = ctl.Detachable(st.Stdin)
		}
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			err := interact(ctx, s, args[0], execID, st)
			if errors.Is(err, ctl.ErrDetached) {
				_, err = fmt.Fprintln(cmd.ErrOrStderr(), "\ndetached") // the cursor is where the process left it
			}
			return err
		})
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&execID, "exec-id", "", execIDUsage)
	return cmd
}

func (c *ctlCommand) signal() *cobra.Command {
	var execID string
	var number uint32
	cmd := c.simple("signal ID SIGNAL", "Send a signal, by number or name (TERM), to a container or process", cobra.ExactArgs(2),
		func(ctx context.Context, s *ctl.Session, args []string) error {
			return s.Signal(ctx, args[0], execID, number)
		})
	cmd.PreRunE = func(cmd *cobra.Command, args []string) (err error) {
		if number, err = parseSignal(args[1]); err != nil {
			return &usageError{cmd: cmd.CommandPath(), err: err}
		}
		return nil
	}
	cmd.Flags().StringVar(&execID, "exec-id", "", execIDUsage)
	return cmd
}

// parseSignal reads a signal's number, or its name with or without SIG. Numbers are those of Linux, the same on every
// architecture that a guest can have.
func parseSignal(s string) (uint32, error) {
	if number, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(number), nil
	}
	number := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG"))
	if number == 0 {
		return 0, fmt.Errorf("%q is neither the number nor the name of a signal", s)
	}
	return uint32(number), nil
}

func (c *ctlCommand) waitProcess() *cobra.Command {
	var execID string
	cmd := &cobra.Command{
		Use:   "wait ID",
		Short: "Wait for a container or process to end and exit with its status",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
				status, err := s.Wait(ctx, args[0], execID)
				if err != nil {
					return err
				}
				if err := c.answer(cmd, &pb.WaitProcessResponse{Status: int32(status)}, strconv.Itoa(status)); err != nil {
					return err
				}
				return statusError(status)
			})
		},
	}
	cmd.Flags().StringVar(&execID, "exec-id", "", execIDUsage)
	return cmd
}
