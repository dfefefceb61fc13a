// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package story

import (
	"context"
	"net/netip"

	"github.com/cloister-cc/cloister/ctl"
)

// The guest's end of QEMU's user network. GuestMAC is what QEMU gives the first network device.
const (
	GuestMAC = "52:54:00:12:34:56"
	GuestIP  = "10.0.2.15/24"
)

// Link is the guest's network interface.
func Link() ctl.Link {
	return ctl.Link{Name: "eth0", MAC: GuestMAC, Addresses: []netip.Prefix{netip.MustParsePrefix(GuestIP)}}
}

// Routes is the default route out of the guest.
func Routes() []ctl.Route {
	return []ctl.Route{{Gateway: netip.MustParseAddr(GuestHost), Device: "eth0"}}
}

// SetUpNetwork brings the guest's link up, as the shim does before it creates a sandbox.
func SetUpNetwork(ctx context.Context, s *ctl.Session) error {
	if _, err := s.UpdateInterface(ctx, Link()); err != nil {
		return err
	}
	_, err := s.UpdateRoutes(ctx, Routes())
	return err
}
