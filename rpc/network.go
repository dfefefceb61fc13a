// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/cloister-cc/cloister/agent/netdev"
	"github.com/cloister-cc/cloister/rpc/pb/types"
)

// maxLinkName is Linux' IFNAMSIZ without the NUL, in bytes.
const maxLinkName = 15

func checkLinkName(name string) error {
	if len(name) > maxLinkName || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\r\n") {
		return invalid("%q is no name of a network link", shorten(name))
	}
	return nil
}

func interfaceFromPB(in *types.Interface) (netdev.Interface, error) {
	for _, name := range []string{in.GetDevice(), in.GetName()} {
		if err := checkLinkName(name); err != nil {
			return netdev.Interface{}, err
		}
	}
	if mac, err := net.ParseMAC(in.GetHwAddr()); err != nil || len(mac) != 6 {
		return netdev.Interface{}, invalid("hardware address %q is not six bytes as in 02:00:00:00:00:01", shorten(in.GetHwAddr()))
	}
	out := netdev.Interface{
		Device: in.GetDevice(), Name: in.GetName(), HWAddr: in.GetHwAddr(), MTU: in.GetMtu(), RawFlags: in.GetRawFlags(),
		DevicePath: in.GetDevicePath(), Type: in.GetType(),
	}
	for _, a := range in.GetIPAddresses() {
		p, err := addressFromPB(a)
		if err != nil {
			return netdev.Interface{}, err
		}
		out.Addresses = append(out.Addresses, p)
	}
	return out, nil
}

// addressFromPB joins an address and its mask, which is a number of bits or written like an address.
func addressFromPB(in *types.IPAddress) (netip.Prefix, error) {
	addr, err := parseAddr(in.GetAddress(), in.GetFamily())
	if err != nil {
		return netip.Prefix{}, err
	}
	bits, err := maskBits(in.GetMask(), addr)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(addr, bits), nil
}

func maskBits(mask string, addr netip.Addr) (int, error) {
	if n, err := strconv.ParseUint(mask, 10, 8); err == nil && int(n) <= addr.BitLen() {
		return int(n), nil
	}
	m, err := netip.ParseAddr(mask)
	if err != nil || m.BitLen() != addr.BitLen() || m.Zone() != "" {
		return 0, invalid("mask %q of address %s is neither a number of bits nor like 255.255.255.0", shorten(mask), addr)
	}
	ones, size := net.IPMask(m.AsSlice()).Size()
	if size == 0 {
		return 0, invalid("mask %q of address %s has holes", mask, addr)
	}
	return ones, nil
}

func parseAddr(s string, family types.IPFamily) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" || addr.Is4In6() {
		return netip.Addr{}, invalid("%q is no IP address", shorten(s))
	}
	if addr.Is6() != (family == types.IPFamily_v6) {
		return netip.Addr{}, invalid("address %s is not of family %s", addr, family)
	}
	return addr, nil
}

func routesFromPB(in []*types.Route) ([]netdev.Route, error) {
	var out []netdev.Route
	for _, r := range in {
		route, err := routeFromPB(r)
		if err != nil {
			return nil, err
		}
		out = append(out, route)
	}
	return out, nil
}

func routeFromPB(in *types.Route) (netdev.Route, error) {
	if err := checkLinkName(in.GetDevice()); err != nil {
		return netdev.Route{}, err
	}
	if in.GetScope() > math.MaxUint8 {
		return netdev.Route{}, invalid("route scope %d is above 255", in.GetScope())
	}
	out := netdev.Route{
		Device: in.GetDevice(), Scope: uint8(in.GetScope()), Flags: in.GetFlags(), MTU: in.GetMtu(),
		IPv6: in.GetFamily() == types.IPFamily_v6,
	}
	var err error
	if out.Dest, err = destination(in.GetDest(), in.GetFamily()); err != nil {
		return netdev.Route{}, err
	}
	if in.GetGateway() != "" {
		if out.Gateway, err = parseAddr(in.GetGateway(), in.GetFamily()); err != nil {
			return netdev.Route{}, err
		}
	}
	if in.GetSource() != "" {
		if out.Source, err = parseAddr(in.GetSource(), in.GetFamily()); err != nil {
			return netdev.Route{}, err
		}
	}
	return out, nil
}

// destination reads a route's destination; the default route has many spellings and is the zero Prefix. A plain
// address is a route to that one host.
func destination(s string, family types.IPFamily) (netip.Prefix, error) {
	addrText, maskText, hasMask := strings.Cut(s, "/")
	if s == "" || s == "default" {
		return netip.Prefix{}, nil
	}
	addr, err := parseAddr(addrText, family)
	if err != nil {
		return netip.Prefix{}, err
	}
	bits := addr.BitLen()
	switch {
	case hasMask:
		if bits, err = maskBits(maskText, addr); err != nil {
			return netip.Prefix{}, err
		}
	case addr.IsUnspecified():
		bits = 0
	}
	if bits == 0 {
		return netip.Prefix{}, nil
	}
	return netip.PrefixFrom(addr, bits).Masked(), nil
}

func routesToPB(in []netdev.Route) []*types.Route {
	out := make([]*types.Route, 0, len(in))
	for _, r := range in {
		p := &types.Route{Device: r.Device, Scope: uint32(r.Scope), Flags: r.Flags, Mtu: r.MTU}
		if r.IPv6 || r.Dest.Addr().Is6() {
			p.Family = types.IPFamily_v6
		}
		if r.Dest.IsValid() {
			p.Dest = r.Dest.String()
		}
		if r.Gateway.IsValid() {
			p.Gateway = r.Gateway.String()
		}
		if r.Source.IsValid() {
			p.Source = r.Source.String()
		}
		out = append(out, p)
	}
	return out
}
