// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package netdev configures network links, addresses and routes of the guest over netlink.
package netdev

import "net/netip"

// Interface is the wanted state of one network link.
type Interface struct {
	// Name is what the link shall be called; Device is the name that the host knows it by.
	Device, Name string
	// HWAddr finds the link; it is six colon-separated bytes.
	HWAddr    string
	Addresses []netip.Prefix
	MTU       uint64
	// RawFlags are IFF_* flags; only IFF_NOARP is honoured.
	RawFlags uint32
	// DevicePath is the PCI path of a link that is being plugged in; empty for one that is there.
	DevicePath string
	Type       string
}

// Route is one route of the main table.
type Route struct {
	// Dest is the destination; the zero Prefix is the default route.
	Dest netip.Prefix
	// Gateway and Source are optional.
	Gateway, Source netip.Addr
	// Device is the name of the link.
	Device string
	// Scope is RT_SCOPE_*.
	Scope uint8
	// Flags are RTNH_F_*.
	Flags uint32
	MTU   uint32
	// IPv6 tells the family of a default route.
	IPv6 bool
}
