// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package netdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Links configures the network of the network namespace that its callers' threads are in. It implements
// agent.Network. Calls should not be made at the same time: what they see of each other is not defined.
type Links struct{ ipv6Disabled string }

// New returns a Links.
func New() *Links { return &Links{ipv6Disabled: "/proc/sys/net/ipv6/conf/all/disable_ipv6"} }

// ipv6 reports whether the kernel takes IPv6 addresses and routes.
func (l *Links) ipv6() bool {
	data, err := os.ReadFile(l.ipv6Disabled)
	return err == nil && strings.TrimSpace(string(data)) == "0"
}

// UpdateInterface finds a link by its hardware address and brings it into the wanted state; addresses that are not
// wanted are removed. IPv6 addresses are left out where IPv6 is disabled. An absent link is ErrLinkNotFound.
func (l *Links) UpdateInterface(ctx context.Context, want Interface) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("update interface: %w", err)
	}
	defer h.Close()
	links, err := list(h)
	if err != nil {
		return fmt.Errorf("update interface: %w", err)
	}
	plan, err := planInterface(want, links, l.ipv6())
	if err != nil {
		return fmt.Errorf("update interface: %w", err)
	}
	for _, c := range plan {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("update interface: %w", err)
		}
		if err := apply(h, c); err != nil {
			return fmt.Errorf("update interface %s: %s: %w", want.HWAddr, c.action, err)
		}
	}
	return nil
}

// apply makes one change.
func apply(h *netlink.Handle, c change) error {
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: c.link}}
	switch c.action {
	case setDown:
		return h.LinkSetDown(link)
	case setUp:
		return h.LinkSetUp(link)
	case deleteAddress:
		err := h.AddrDel(link, &netlink.Addr{IPNet: ipNet(c.address)})
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil // the kernel drops IPv6 addresses of a link that goes down
		}
		return err
	case addAddress:
		return h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(c.address)})
	case rename:
		return h.LinkSetName(link, c.name)
	case setMTU:
		return h.LinkSetMTU(link, c.mtu)
	case setARP:
		return h.LinkSetARPOn(link)
	case clearARP:
		return h.LinkSetARPOff(link)
	}
	return fmt.Errorf("no such action")
}

// UpdateRoutes adds or replaces routes of the main table, those without a gateway first, and returns all that the
// table has then. It deletes none. A route whose device is absent is ErrLinkNotFound.
func (l *Links) UpdateRoutes(ctx context.Context, want []Route) ([]Route, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("update routes: %w", err)
	}
	defer h.Close()
	links, err := list(h)
	if err != nil {
		return nil, fmt.Errorf("update routes: %w", err)
	}
	plan, err := planRoutes(want, links, l.ipv6())
	if err != nil {
		return nil, fmt.Errorf("update routes: %w", err)
	}
	for _, r := range plan {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("update routes: %w", err)
		}
		if err := h.RouteReplace(&r); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("update routes: route to %v: %w", r.Dst, err)
		}
	}
	return listRoutes(h, links)
}

// LoopbackUp sets the loopback link up.
func (l *Links) LoopbackUp() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}

// dumpAttempts is how often a listing is tried that the kernel says was disturbed by a change.
const dumpAttempts = 5

func dump[T any](f func() (T, error)) (result T, err error) {
	for range dumpAttempts {
		if result, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return result, err
}

// list returns every link with its addresses.
func list(h *netlink.Handle) ([]link, error) {
	found, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links := make([]link, 0, len(found))
	for _, f := range found {
		attrs := f.Attrs()
		l := link{index: attrs.Index, name: attrs.Name, hwaddr: attrs.HardwareAddr, up: attrs.RawFlags&unix.IFF_UP != 0}
		addresses, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(f, netlink.FAMILY_ALL) })
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", l.name, err)
		}
		for _, a := range addresses {
			if p := prefixOf(a.IPNet); p.IsValid() {
				l.addresses = append(l.addresses, p)
			}
		}
		links = append(links, l)
	}
	return links, nil
}

// listRoutes returns the unicast routes of the main table.
func listRoutes(h *netlink.Handle, links []link) ([]Route, error) {
	found, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	routes := make([]Route, 0, len(found))
	for _, f := range found {
		if r, ok := routeOf(f, links); ok {
			routes = append(routes, r)
		}
	}
	return routes, nil
}
