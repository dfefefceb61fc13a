// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/initramfs/layout"
)

// defaultLogPort is the vsock port on which the Kata shim reads an agent's log.
const defaultLogPort = 1025

func (c *ctlCommand) copy() *cobra.Command {
	return &cobra.Command{
		Use:   "copy FILE GUEST_NAME",
		Short: "Copy a file or folder into the guest, for containers to mount",
		Long: "copy puts a file, or a folder with all that is in it, under a name into the folder of the guest from which containers\n" +
			"get files of the host: create-container --mount GUEST_NAME:DESTINATION. Permissions, owners and symbolic links are\n" +
			"kept. A file that is there is replaced. The sandbox must have been created. What is copied is no secret: it comes\n" +
			"from the host.",
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := ctl.GuestPath(args[1]); err != nil {
				return &usageError{cmd: cmd.CommandPath(), err: err}
			}
			return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
				done, err := s.Copy(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				if c.json {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(done)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d files, %d folders, %d links, %s\n",
					done.Path, done.Files, done.Folders, done.Links, byteSize(done.Bytes))
				return err
			})
		},
	}
}

func (c *ctlCommand) terminationLog() *cobra.Command {
	return &cobra.Command{
		Use:   "termination-log ID",
		Short: "Show why a container has ended, as it says itself",
		Long: "termination-log prints the start of what a container has written to its termination log: the file that is mounted\n" +
			"where its annotation " + ctl.TerminationPath + " says. Of a container that has none, it\n" +
			"prints nothing.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
				r, err := s.TerminationLog(ctx, args[0])
				if err != nil {
					return err
				}
				if r.GetData() == "" && !c.json {
					return nil
				}
				return c.answer(cmd, r, strings.TrimSuffix(r.GetData(), "\n"))
			})
		},
	}
}

func (c *ctlCommand) metrics() *cobra.Command {
	return &cobra.Command{Use: "metrics", Short: "Print the guest's metrics in Prometheus' text format", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			r, err := s.Metrics(ctx)
			if err != nil {
				return err
			}
			return c.answer(cmd, r, strings.TrimSuffix(r.GetMetrics(), "\n"))
		})
	}}
}

// dialPort connects to another port of the guest. hint says why nothing might listen there.
func (c *ctlCommand) dialPort(cmd *cobra.Command, port uint32, hint string) (net.Conn, error) {
	if err := requireFlags(cmd, "address"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), c.wait)
	defer cancel()
	conn, err := client.DialPort(ctx, c.address, port)
	switch {
	case errors.Is(err, client.ErrAddress):
		return nil, &usageError{cmd: cmd.CommandPath(), err: err}
	case err != nil:
		return nil, &hintError{err, hint}
	}
	return conn, nil
}

func (c *ctlCommand) logs() *cobra.Command {
	var port uint32
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Show the agent's log and follow it",
		Long: "logs shows what the agent keeps of its log, and then each line as it is written, until the guest ends or Ctrl-C. The\n" +
			"guest must have been built with --log-port. --address is that of the agent, of which the port is replaced; unix://PATH\n" +
			"is the log's own socket. With --json, the lines are as the agent sends them.\n\n" +
			"The output of a container is shown by attach.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().Uint32Var(&port, "port", defaultLogPort, "vsock port of the log")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conn, err := c.dialPort(cmd, port, fmt.Sprintf("was the guest built with --log-port %d?", port))
		if err != nil {
			return err
		}
		defer conn.Close()
		ctx := cmd.Context()
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		if err := ctl.CopyLog(cmd.OutOrStdout(), conn, c.json); err != nil && ctx.Err() == nil {
			return err
		}
		return nil
	}
	return cmd
}

func (c *ctlCommand) console() *cobra.Command {
	var port uint32
	cmd := &cobra.Command{
		Use:   "console",
		Short: "Open a shell in the guest itself, for development",
		Long: "console connects with the guest's debug console, a shell outside of all containers, until that exits; Ctrl-] leaves\n" +
			"it. The guest must have been built with --debug-console, and its root file system must have a shell. Commands can come\n" +
			"from a pipe or file, too. --address is that of the agent, of which the port is replaced; unix://PATH is the console's\n" +
			"own socket.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().Uint32Var(&port, "port", layout.DebugConsolePort, "vsock port of the debug console")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		in := cmd.InOrStdin()
		terminal, ok := terminalOf(in)
		conn, err := c.dialPort(cmd, port, "was the guest built with --debug-console?")
		if err != nil {
			return err
		}
		if ok {
			_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "debug console; Ctrl-] leaves it")
		}
		return ctl.Console(cmd.Context(), conn, in, cmd.OutOrStdout(), terminal)
	}
	return cmd
}
