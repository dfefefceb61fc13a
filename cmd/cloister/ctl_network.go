// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/ctl"
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
