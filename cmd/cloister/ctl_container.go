// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/rpc/pb"
)

// linkFlags are the flags that describe a network interface.
type linkFlags struct {
	name, mac string
	ips       []string
	mtu       uint64
}

func (l *linkFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&l.name, "interface", "eth0", "name of the guest's network interface")
	f.StringVar(&l.mac, "mac", "", "hardware address that finds the interface")
	f.StringArrayVar(&l.ips, "ip", nil, "address of the interface, for instance 10.0.2.15/24 (may be repeated)")
	f.Uint64Var(&l.mtu, "mtu", 0, "MTU in bytes; 0 leaves it as it is")
}

func (l *linkFlags) link(cmd *cobra.Command) (*ctl.Link, error) {
	if hw, err := net.ParseMAC(l.mac); err != nil || len(hw) != 6 {
		return nil, &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--mac is not six bytes as in 02:00:00:00:00:01: %q", l.mac)}
	}
	link := &ctl.Link{Name: l.name, MAC: l.mac, MTU: l.mtu}
	for _, s := range l.ips {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--ip is not ADDRESS/BITS, for instance 10.0.2.15/24: %q", s)}
		}
		link.Addresses = append(link.Addresses, p)
	}
	return link, nil
}

func (c *ctlCommand) updateInterface() *cobra.Command {
	var flags linkFlags
	cmd := &cobra.Command{Use: "update-interface", Short: "Configure a network interface of the guest", Args: cobra.NoArgs}
	flags.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := requireFlags(cmd, "mac"); err != nil {
			return err
		}
		link, err := flags.link(cmd)
		if err != nil {
			return err
		}
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			r, err := s.UpdateInterface(ctx, *link)
			if err != nil {
				return err
			}
			return c.answer(cmd, r, r.GetName()+" configured")
		})
	}
	return cmd
}

func (c *ctlCommand) updateRoutes() *cobra.Command {
	var gateway, device string
	cmd := &cobra.Command{Use: "update-routes", Short: "Set the guest's default route and show its routes", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&gateway, "gateway", "", "gateway of the default route; without it nothing is set")
	cmd.Flags().StringVar(&device, "interface", "eth0", "interface of the default route")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		routes, err := defaultRoute(cmd, gateway, device)
		if err != nil {
			return err
		}
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			r, err := s.UpdateRoutes(ctx, routes)
			if err != nil {
				return err
			}
			return c.answer(cmd, r, ctl.FormatRoutes(r))
		})
	}
	return cmd
}

func defaultRoute(cmd *cobra.Command, gateway, device string) ([]ctl.Route, error) {
	if gateway == "" {
		return nil, nil
	}
	addr, err := netip.ParseAddr(gateway)
	if err != nil {
		return nil, &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--gateway is not an address: %q", gateway)}
	}
	return []ctl.Route{{Gateway: addr, Device: device}}, nil
}

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

func (c *ctlCommand) create() *cobra.Command {
	var flags containerFlags
	cmd := c.simple("create-container [flags] ID IMAGE -- COMMAND...", "Pull an image in the guest and create a container of it", cobra.MinimumNArgs(3),
		func(ctx context.Context, s *ctl.Session, args []string) error {
			flags.container.ID, flags.container.Image, flags.container.Process.Args = args[0], args[1], args[2:]
			return s.CreateContainer(ctx, flags.container)
		})
	flags.add(cmd)
	return cmd
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

const execIDUsage = "id of a process that exec has started; empty is the container's own"

func (c *ctlCommand) exec() *cobra.Command {
	var execID string
	var p ctl.Process
	cmd := &cobra.Command{
		Use:   "exec [flags] ID -- COMMAND...",
		Short: "Run a process in a container, show its output and exit with its status",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.Args = args[1:]
			return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
				if err := s.Exec(ctx, args[0], execID, p); err != nil {
					return err
				}
				if err := s.Attach(ctx, args[0], execID, cmd.OutOrStdout(), cmd.ErrOrStderr()); err != nil {
					return err
				}
				status, err := s.Wait(ctx, args[0], execID)
				if err != nil {
					return err
				}
				return statusError(status)
			})
		},
	}
	cmd.Flags().StringVar(&execID, "exec-id", "exec-1", "id of the new process")
	cmd.Flags().StringArrayVar(&p.Env, "env", nil, "NAME=VALUE (may be repeated)")
	cmd.Flags().StringVar(&p.Cwd, "cwd", "/", "working directory")
	return cmd
}

func (c *ctlCommand) attach() *cobra.Command {
	var execID string
	cmd := c.simple("attach ID", "Show the output of a container or process until it ends", cobra.ExactArgs(1), nil)
	cmd.Aliases = []string{"logs"}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			return s.Attach(ctx, args[0], execID, cmd.OutOrStdout(), cmd.ErrOrStderr())
		})
	}
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

func (c *ctlCommand) run() *cobra.Command {
	var flags containerFlags
	var link linkFlags
	var gateway string
	var o ctl.RunOptions
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE -- COMMAND...",
		Short: "Walk the whole sequence of the shim for one container and exit with its status",
		Long: "run checks the agent, configures the network where --mac is given, creates the sandbox and the container, shows\n" +
			"its output until it ends, removes it and destroys the sandbox: the guest then powers off.",
		Args: cobra.MinimumNArgs(2),
	}
	flags.add(cmd)
	link.add(cmd)
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
		o.Stdout, o.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
		var err error
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
				return err
			}
			return statusError(status)
		})
	}
	return cmd
}
