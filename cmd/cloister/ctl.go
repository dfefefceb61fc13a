// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/ctl"
)

// defaultWait is how long a ctl command waits for an agent whose guest is booting.
const defaultWait = 30 * time.Second

const ctlExample = `  cloister ctl --address hvsock:///run/guest/vsock.sock:1024 check
  cloister ctl --address vsock://3:1024 run registry.example:5000/demo:1 --name demo \
      --mac 52:54:00:12:34:56 --ip 10.0.2.15/24 --gateway 10.0.2.2 -- /bin/echo hello`

// ctlCommand holds what all commands below "cloister ctl" share.
type ctlCommand struct {
	address string
	wait    time.Duration
	json    bool
	steps   bool
}

// newCtlCommand returns "cloister ctl" and all below it.
func newCtlCommand() *cobra.Command {
	c := &ctlCommand{}
	cmd := &cobra.Command{
		Use:   "ctl",
		Short: "Drive the agent of a running guest by hand, as the Kata shim does",
		Long: "ctl sends requests of the Kata agent API to a running guest. Most commands are one request; --steps shows\n" +
			"those of the others. What the guest lets pass is decided by its policy: a guest built without --policy answers nothing\n" +
			"but check and version.",
		Example: ctlExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := cmd.PersistentFlags()
	f.StringVar(&c.address, "address", "", "agent: hvsock://SOCKET:PORT, vsock://CID:PORT or unix://PATH")
	f.DurationVar(&c.wait, "wait", defaultWait, "how long to wait for a guest that is still booting")
	f.BoolVar(&c.json, "json", false, "print the answer, or each step of run, as JSON")
	f.BoolVar(&c.steps, "steps", false, "print each request with its time on standard error")
	cmd.AddCommand(
		c.health(), c.version(), c.details(),
		c.updateInterface(), c.updateRoutes(), c.createSandbox(), c.destroySandbox(),
		c.create(), c.start(), c.exec(), c.attach(), c.signal(), c.waitProcess(), c.remove(),
		c.pause(), c.resume(), c.stats(), c.update(), c.oom(), c.pull(),
		c.copy(), c.terminationLog(), c.metrics(), c.logs(), c.console(),
		c.run(),
	)
	for _, sub := range cmd.Commands() {
		if sub.ValidArgsFunction == nil {
			sub.ValidArgsFunction = cobra.NoFileCompletions
		}
		sub.Example = exampleStart + ctlExamples[sub.Name()]
	}
	return cmd
}

// exampleStart begins each example of a sub-command, and another begins a further one.
const (
	exampleStart = "  cloister ctl --address hvsock:///run/guest/vsock.sock:1024 "
	another      = "\n" + exampleStart
)

// ctlExamples are the examples of the sub-commands, without the start of the first.
var ctlExamples = map[string]string{
	"check":            "check",
	"version":          "version --json",
	"details":          "details",
	"update-interface": "update-interface --mac 52:54:00:12:34:56 --ip 10.0.2.15/24",
	"update-routes":    "update-routes --gateway 10.0.2.2",
	"create-sandbox":   "create-sandbox pod --hostname pod-1 --share-pid",
	"create-container": "create-container --sandbox pod c1 registry.example:5000/demo:1 -- /bin/sleep 100" +
		another + "create-container --pause pod" +
		another + "create-container --sandbox pod --mount motd:/etc/motd:ro c2 registry.example:5000/demo:1 -- /bin/cat /etc/motd",
	"pull":            "pull registry.example:5000/demo:1" + another + "pull --sandbox pod registry.example:5000/demo:1 --json",
	"start":           "start c1",
	"exec":            "exec c1 -- /bin/ls -l /" + another + "exec -it c1 -- /bin/sh",
	"attach":          "attach c1",
	"pause":           "pause c1",
	"resume":          "resume c1",
	"stats":           "stats c1 c2",
	"update":          "update --memory 64M --cpu-quota 50000 --cpu-period 100000 --pids 100 c1",
	"oom":             "oom",
	"copy":            "copy /etc/motd motd",
	"termination-log": "termination-log c1",
	"metrics":         "metrics",
	"logs":            "logs",
	"console":         "console",
	"signal":          "signal c1 TERM",
	"wait":            "wait c1",
	"remove":          "remove c1",
	"destroy":         "destroy",
	"run":             "run --mac 52:54:00:12:34:56 --ip 10.0.2.15/24 --gateway 10.0.2.2 registry.example:5000/demo:1 -- /bin/echo hello",
}

// do connects and runs f with a session.
func (c *ctlCommand) do(cmd *cobra.Command, f func(ctx context.Context, s *ctl.Session) error) error {
	if err := requireFlags(cmd, "address"); err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(cmd.Context(), c.wait)
	defer cancel()
	agent, err := client.DialReady(ready, c.address)
	if errors.Is(err, client.ErrAddress) {
		return &usageError{cmd: cmd.CommandPath(), err: err}
	}
	if err != nil {
		return err
	}
	defer func() { _ = agent.Close() }()
	s := ctl.NewSession(agent)
	if c.steps {
		s.OnStep = ctl.StepPrinter(cmd.ErrOrStderr(), c.json)
	}
	return f(cmd.Context(), s)
}

// simple returns a command that is one request without an answer.
func (c *ctlCommand) simple(use, short string, args cobra.PositionalArgs, f func(context.Context, *ctl.Session, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			if err := f(ctx, s, args); err != nil {
				return err
			}
			if c.json {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "{}")
				return err
			}
			return nil
		})
	}}
}

// answer prints an answer: as JSON, or in the words of text.
func (c *ctlCommand) answer(cmd *cobra.Command, m proto.Message, text string) error {
	if c.json {
		data, err := (protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}).Marshal(m)
		if err != nil {
			return fmt.Errorf("encode answer: %w", err)
		}
		text = string(data)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

func (c *ctlCommand) health() *cobra.Command {
	return &cobra.Command{Use: "check", Short: "Ask whether the agent serves", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			r, err := s.Check(ctx)
			if err != nil {
				return err
			}
			return c.answer(cmd, r, r.GetStatus().String())
		})
	}}
}

func (c *ctlCommand) version() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Show the version of the agent", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			r, err := s.Version(ctx)
			if err != nil {
				return err
			}
			return c.answer(cmd, r, fmt.Sprintf("agent %s, API %s", r.GetAgentVersion(), r.GetGrpcVersion()))
		})
	}}
}

func (c *ctlCommand) details() *cobra.Command {
	return &cobra.Command{Use: "details", Short: "Show what the agent offers", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			r, err := s.Details(ctx)
			if err != nil {
				return err
			}
			d := r.GetAgentDetails()
			return c.answer(cmd, r, fmt.Sprintf("version:          %s\nPID 1:            %t\nstorage handlers: %s\nseccomp:          %t",
				d.GetVersion(), d.GetInitDaemon(), strings.Join(d.GetStorageHandlers(), ", "), d.GetSupportsSeccomp()))
		})
	}}
}

func (c *ctlCommand) createSandbox() *cobra.Command {
	var sandbox ctl.Sandbox
	cmd := c.simple("create-sandbox ID", "Set the sandbox up", cobra.ExactArgs(1), func(ctx context.Context, s *ctl.Session, args []string) error {
		sandbox.ID = args[0]
		return s.SetUpSandbox(ctx, sandbox)
	})
	f := cmd.Flags()
	f.StringVar(&sandbox.Hostname, "hostname", "", "host name of the sandbox")
	f.StringArrayVar(&sandbox.DNS, "dns", nil, "line of the sandbox's resolv.conf, for instance \"nameserver 10.0.2.3\" (may be repeated)")
	f.BoolVar(&sandbox.SharePID, "share-pid", false, "put all containers into the PID namespace of the first one")
	return cmd
}

func (c *ctlCommand) destroySandbox() *cobra.Command {
	return c.simple("destroy", "Destroy all containers; the guest powers off", cobra.NoArgs, func(ctx context.Context, s *ctl.Session, _ []string) error {
		return s.DestroySandbox(ctx)
	})
}

// exitStatus ends the program with the status of a process in the guest. It has no text of its own.
type exitStatus int

// Error returns nothing: the process has said what there is to say.
func (exitStatus) Error() string { return "" }

// ExitCode returns the status.
func (e exitStatus) ExitCode() int { return int(e) }

// statusError returns nil for the status 0.
func statusError(status int) error {
	if status == 0 {
		return nil
	}
	return exitStatus(status)
}
