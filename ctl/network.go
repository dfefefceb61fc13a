// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"context"
	"net/netip"
	"strconv"

	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/rpc/pb/types"
)

// Link is a network interface of the guest as it shall be.
type Link struct {
	// Name is what the interface shall be called, for instance "eth0".
	Name string
	// MAC finds the interface.
	MAC       string
	Addresses []netip.Prefix
	// MTU is in bytes; 0 leaves it to the agent.
	MTU uint64
}

// Route is a route of the guest; the zero Dest is the default route.
type Route struct {
	Dest    netip.Prefix
	Gateway netip.Addr
	Device  string
}

// UpdateInterface brings an interface of the guest into the wanted state.
func (s *Session) UpdateInterface(ctx context.Context, l Link) (*types.Interface, error) {
	want := &types.Interface{Device: l.Name, Name: l.Name, HwAddr: l.MAC, Mtu: l.MTU}
	for _, a := range l.Addresses {
		want.IPAddresses = append(want.IPAddresses, &types.IPAddress{
			Family: family(a.Addr()), Address: a.Addr().String(), Mask: strconv.Itoa(a.Bits()),
		})
	}
	return ask(ctx, s, "UpdateInterface", s.agent.UpdateInterface, &pb.UpdateInterfaceRequest{Interface: want})
}

// UpdateRoutes adds or replaces routes and returns those of the guest's main table.
func (s *Session) UpdateRoutes(ctx context.Context, routes []Route) (*pb.Routes, error) {
	want := &pb.Routes{}
	for _, r := range routes {
		p := &types.Route{Device: r.Device}
		if r.Gateway.IsValid() {
			p.Gateway, p.Family = r.Gateway.String(), family(r.Gateway)
		}
		if r.Dest.IsValid() {
			p.Dest, p.Family = r.Dest.String(), family(r.Dest.Addr())
		}
		want.Routes = append(want.Routes, p)
	}
	return ask(ctx, s, "UpdateRoutes", s.agent.UpdateRoutes, &pb.UpdateRoutesRequest{Routes: want})
}

func family(a netip.Addr) types.IPFamily {
	if a.Is6() {
		return types.IPFamily_v6
	}
	return types.IPFamily_v4
}
