// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/ctl"
)

// containerFlags are the flags that describe a container.
type containerFlags struct {
	container ctl.Container
}

func (f *containerFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.container.SandboxID, "sandbox", "", "id of the sandbox (default: the container's)")
	fl.StringArrayVar(&f.container.Process.Env, "env", nil, "NAME=VALUE for the container's process (may be repeated)")
	fl.StringVar(&f.container.Process.Cwd, "cwd", "/", "working directory")
	fl.Uint32Var(&f.container.Process.UID, "uid", 0, "user id")
	fl.Uint32Var(&f.container.Process.GID, "gid", 0, "group id")
	fl.BoolVar(&f.container.ReadonlyRootfs, "read-only", false, "mount the root file system read-only")
}

const createLong = "create-container has the guest pull an image and creates a container of it, or with --pause the pause container of the\n" +
	"sandbox, whose image and process the guest has built in. It runs once it is started.\n\n" +
	"--mount SOURCE:DESTINATION[:ro] shows the container what 'ctl copy' has put into the guest under the name SOURCE."

func (c *ctlCommand) create() *cobra.Command {
	var flags containerFlags
	var mounts, annotations []string
	cmd := c.simple("create-container [flags] ID IMAGE -- COMMAND...", "Pull an image in the guest and create a container of it", nil,
		func(ctx context.Context, s *ctl.Session, args []string) error {
			flags.container.ID = args[0]
			if !flags.container.Pause {
				flags.container.Image, flags.container.Process.Args = args[1], args[2:]
			}
			return s.CreateContainer(ctx, flags.container)
		})
	cmd.Long = createLong
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if flags.container.Pause {
			return cobra.ExactArgs(1)(cmd, args)
		}
		return cobra.MinimumNArgs(3)(cmd, args)
	}
	flags.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&flags.container.Pause, "pause", false, "create the sandbox's pause container, without image and command")
	f.BoolVarP(&flags.container.Process.Terminal, "tty", "t", false, "give the process a terminal")
	f.StringArrayVar(&mounts, "mount", nil, "SOURCE:DESTINATION[:ro]: what 'ctl copy' put into the guest (may be repeated)")
	f.StringArrayVar(&annotations, "annotation", nil, "NAME=VALUE for the container's spec (may be repeated)")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) (err error) {
		if flags.container.Process.Terminal {
			flags.container.Process.Size = localSize(cmd)
		}
		if flags.container.Annotations, err = parseAnnotations(annotations); err == nil {
			flags.container.Mounts, err = parseMounts(mounts)
		}
		if err != nil {
			return &usageError{cmd: cmd.CommandPath(), err: err}
		}
		return nil
	}
	return cmd
}

// parseMounts reads the values of --mount.
func parseMounts(values []string) ([]ctl.Mount, error) {
	var out []ctl.Mount
	for _, value := range values {
		parts := strings.Split(value, ":")
		if len(parts) == 2 {
			parts = append(parts, "rw")
		}
		if len(parts) != 3 || parts[0] == "" || !path.IsAbs(parts[1]) || parts[2] != "ro" && parts[2] != "rw" {
			return nil, fmt.Errorf("--mount is not SOURCE:DESTINATION[:ro] with an absolute DESTINATION: %q", value)
		}
		if _, err := ctl.GuestPath(parts[0]); err != nil && !path.IsAbs(parts[0]) {
			return nil, fmt.Errorf("--mount: %w", err)
		}
		out = append(out, ctl.Mount{Source: parts[0], Destination: parts[1], ReadOnly: parts[2] == "ro"})
	}
	return out, nil
}

// parseAnnotations reads the values of --annotation.
func parseAnnotations(values []string) (map[string]string, error) {
	out := make(map[string]string, len(values))
	for _, value := range values {
		name, text, ok := strings.Cut(value, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--annotation is not NAME=VALUE: %q", value)
		}
		out[name] = text
	}
	return out, nil
}

func (c *ctlCommand) start() *cobra.Command {
	return c.simple("start ID", "Start a created container", cobra.ExactArgs(1), func(ctx context.Context, s *ctl.Session, args []string) error {
		return s.StartContainer(ctx, args[0])
	})
}

func (c *ctlCommand) remove() *cobra.Command {
	return c.simple("remove ID", "Kill and remove a container", cobra.ExactArgs(1), func(ctx context.Context, s *ctl.Session, args []string) error {
		return s.RemoveContainer(ctx, args[0])
	})
}

func (c *ctlCommand) run() *cobra.Command {
	var flags containerFlags
	var link linkFlags
	var gateway string
	var streams streamFlags
	var o ctl.RunOptions
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE -- COMMAND...",
		Short: "Walk the whole sequence of the shim for one container and exit with its status",
		Long: "run checks the agent, configures the network where --mac is given, creates the sandbox and the container, shows\n" +
			"its output until it ends, removes it and destroys the sandbox: the guest then powers off.\n\n" + streamsLong,
		Args: cobra.MinimumNArgs(2),
	}
	flags.add(cmd)
	link.add(cmd)
	streams.add(cmd)
	f := cmd.Flags()
	f.StringVar(&flags.container.ID, "name", "demo", "id of the container")
	f.StringVar(&gateway, "gateway", "", "gateway of the default route")
	f.StringVar(&o.Hostname, "hostname", "", "host name of the sandbox")
	f.StringArrayVar(&o.DNS, "dns", nil, "line of resolv.conf (may be repeated)")
	f.BoolVar(&o.Pause, "pause", false, "create a pause container first, as Kubernetes does")
	f.StringArrayVar(&o.Exec.Args, "exec", nil,
		"command to run beside the container's own, one flag for each of its words; when it ends, the container is killed")
	f.BoolVar(&o.KeepSandbox, "keep-sandbox", false, "do not destroy the sandbox at the end")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.Container = flags.container
		o.Container.Image, o.Container.Process.Args = args[0], args[1:]
		err := streams.setRun(cmd, &o)
		if err != nil {
			return err
		}
		if len(link.ips) > 0 || gateway != "" || link.mtu != 0 {
			if err := requireFlags(cmd, "mac"); err != nil {
				return err
			}
		}
		if link.mac != "" {
			if o.Link, err = link.link(cmd); err != nil {
				return err
			}
		}
		if o.Routes, err = defaultRoute(cmd, gateway, link.name); err != nil {
			return err
		}
		c.steps = c.steps || c.json
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			status, err := s.Run(ctx, o)
			if err != nil {
				return withoutTerminal(err)
			}
			return statusError(status)
		})
	}
	return cmd
}
