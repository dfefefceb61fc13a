// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package netdev

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxRoutes bounds one request.
const maxRoutes = 4096

// planRoutes puts routes into the order in which they are added, those without a gateway first, since a gateway has
// to be reachable, and checks them. Without ipv6, IPv6 routes are left out.
func planRoutes(want []Route, links []link, ipv6 bool) ([]netlink.Route, error) {
	if len(want) > maxRoutes {
		return nil, fmt.Errorf("%d routes, at most %d are offered", len(want), maxRoutes)
	}
	var plan []netlink.Route
	for _, w := range want {
		r, err := planRoute(w, links)
		if err != nil {
			return nil, err
		}
		if r.Family == unix.AF_INET || ipv6 {
			plan = append(plan, r)
		}
	}
	slices.SortStableFunc(plan, func(a, b netlink.Route) int { return cmp.Compare(len(a.Gw), len(b.Gw)) })
	return plan, nil
}

func planRoute(w Route, links []link) (netlink.Route, error) {
	none := netlink.Route{}
	i := slices.IndexFunc(links, func(l link) bool { return l.name == w.Device })
	if i < 0 {
		return none, fmt.Errorf("%w: route to %v names the device %.32q", ErrLinkNotFound, w.Dest, w.Device)
	}
	dest := w.Dest
	if !dest.IsValid() {
		dest = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if w.IPv6 {
			dest = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	}
	for _, a := range []netip.Addr{w.Gateway, w.Source} {
		if a.IsValid() && (a.Is4() != dest.Addr().Is4() || a.Is4In6() || a.Zone() != "") {
			return none, fmt.Errorf("route to %v: %v is malformed or of another family", dest, a)
		}
	}
	if dest.Addr().Is4In6() || dest.Addr().Zone() != "" {
		return none, fmt.Errorf("route to %v: the destination is malformed", dest)
	}
	if w.MTU > maxMTU {
		return none, fmt.Errorf("route to %v: MTU %d is above %d", dest, w.MTU, maxMTU)
	}
	r := netlink.Route{
		LinkIndex: links[i].index,
		Family:    unix.AF_INET,
		Dst:       ipNet(dest.Masked()),
		Gw:        w.Gateway.AsSlice(),
		Src:       w.Source.AsSlice(),
		Scope:     netlink.Scope(w.Scope),
		Flags:     int(w.Flags) & unix.RTNH_F_ONLINK,
		MTU:       int(w.MTU),
		Protocol:  unix.RTPROT_BOOT,
		Table:     unix.RT_TABLE_MAIN,
		Type:      unix.RTN_UNICAST,
	}
	if dest.Addr().Is6() {
		r.Family = unix.AF_INET6
	}
	return r, nil
}

// routeOf turns a route of the kernel into one of ours; ok is false if it has no link of its own, or is of a kind that
// Route does not express.
func routeOf(r netlink.Route, links []link) (out Route, ok bool) {
	i := slices.IndexFunc(links, func(l link) bool { return l.index == r.LinkIndex })
	if i < 0 || r.Type != unix.RTN_UNICAST {
		return Route{}, false
	}
	out = Route{
		Device: links[i].name,
		Scope:  uint8(r.Scope),
		Flags:  uint32(r.Flags),
		MTU:    uint32(min(max(r.MTU, 0), maxMTU)),
		IPv6:   r.Family == unix.AF_INET6,
	}
	out.Gateway, _ = netip.AddrFromSlice(r.Gw)
	out.Source, _ = netip.AddrFromSlice(r.Src)
	out.Gateway, out.Source = out.Gateway.Unmap(), out.Source.Unmap()
	if r.Dst != nil {
		if p := prefixOf(r.Dst); p.Bits() > 0 { // the default route is the zero Prefix
			out.Dest = p
		}
	}
	return out, true
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is the zero Prefix if n is malformed.
func prefixOf(n *net.IPNet) netip.Prefix {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}
	}
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}
