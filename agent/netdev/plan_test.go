// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package netdev

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func testLinks() []link {
	return []link{
		{index: 1, name: "lo", hwaddr: make(net.HardwareAddr, 6), up: true, addresses: []netip.Prefix{prefix("127.0.0.1/8")}},
		{index: 2, name: "enp1s0", hwaddr: mac(1)},
		{index: 3, name: "eth0", hwaddr: mac(2), up: true, addresses: []netip.Prefix{prefix("10.0.0.9/24"), prefix("10.0.0.2/24"), prefix("fe80::1/64")}},
		{index: 4, name: "swap0", hwaddr: mac(3)},
	}
}

func TestPlanInterface(t *testing.T) {
	compare := cmp.Options{cmp.AllowUnexported(change{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	for name, test := range map[string]struct {
		want Interface
		ipv6 bool
		plan []change
	}{
		"all of it": {
			Interface{HWAddr: "02:00:00:00:00:01", Name: "net1", MTU: 1450, Addresses: []netip.Prefix{prefix("10.0.0.2/24"), prefix("fd00::2/64")}, RawFlags: unix.IFF_NOARP},
			true,
			[]change{
				{action: setDown, link: 2},
				{action: addAddress, link: 2, address: prefix("10.0.0.2/24")},
				{action: addAddress, link: 2, address: prefix("fd00::2/64")},
				{action: rename, link: 2, name: "net1"},
				{action: setMTU, link: 2, mtu: 1450},
				{action: clearARP, link: 2},
				{action: setUp, link: 2},
			},
		},
		"addresses replaced, name and MTU stay": {
			Interface{HWAddr: "02:00:00:00:00:02", Name: "eth0", Addresses: []netip.Prefix{prefix("10.0.0.2/24"), prefix("fd00::2/64")}},
			false,
			[]change{
				{action: setDown, link: 3},
				{action: deleteAddress, link: 3, address: prefix("10.0.0.9/24")},
				{action: deleteAddress, link: 3, address: prefix("fe80::1/64")},
				{action: addAddress, link: 3, address: prefix("10.0.0.2/24")},
				{action: setARP, link: 3},
				{action: setUp, link: 3},
			},
		},
		"name is taken": {
			Interface{HWAddr: "02:00:00:00:00:01", Name: "eth0"},
			false,
			[]change{
				{action: setDown, link: 2},
				{action: setDown, link: 3},
				{action: rename, link: 3, name: "swap1"},
				{action: rename, link: 2, name: "eth0"},
				{action: rename, link: 3, name: "enp1s0"},
				{action: setUp, link: 3},
				{action: setARP, link: 2},
				{action: setUp, link: 2},
			},
		},
		"no name": {
			Interface{HWAddr: "02:00:00:00:00:03", Device: ""},
			false,
			[]change{{action: setDown, link: 4}, {action: setARP, link: 4}, {action: setUp, link: 4}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := planInterface(test.want, testLinks(), test.ipv6)
			if diff := cmp.Diff(test.plan, plan, compare); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

func TestPlanInterfaceRefuses(t *testing.T) {
	const hw = "02:00:00:00:00:01"
	for name, test := range map[string]struct {
		want Interface
		text string
	}{
		"absent":            {Interface{HWAddr: "02:00:00:00:00:ff"}, "Link not found"},
		"no address":        {Interface{}, "not six bytes"},
		"loopback":          {Interface{HWAddr: "00:00:00:00:00:00"}, "not six bytes"},
		"eight bytes":       {Interface{HWAddr: "02:00:00:00:00:01:02:03"}, "not six bytes"},
		"name with a slash": {Interface{HWAddr: hw, Name: "../x"}, "link name"},
		"name pattern":      {Interface{HWAddr: hw, Name: "eth%d"}, "link name"},
		"name of loopback":  {Interface{HWAddr: hw, Name: "lo"}, "link name"},
		"long name":         {Interface{HWAddr: hw, Name: strings.Repeat("a", 16)}, "link name"},
		"dots":              {Interface{HWAddr: hw, Name: ".."}, "link name"},
		"space":             {Interface{HWAddr: hw, Name: "a b"}, "link name"},
		"small MTU":         {Interface{HWAddr: hw, MTU: 67}, "MTU"},
		"huge MTU":          {Interface{HWAddr: hw, MTU: 1 << 40}, "MTU"},
		"zero address":      {Interface{HWAddr: hw, Addresses: make([]netip.Prefix, 1)}, "malformed"},
		"mapped address":    {Interface{HWAddr: hw, Addresses: []netip.Prefix{prefix("::ffff:10.0.0.1/120")}}, "malformed"},
		"many addresses":    {Interface{HWAddr: hw, Addresses: make([]netip.Prefix, maxAddresses+1)}, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := planInterface(test.want, testLinks(), true); err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v, want one with %q", err, test.text)
			}
		})
	}
}

func TestPlanRoutes(t *testing.T) {
	gw4, gw6, src := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.2")
	want := []Route{
		{Device: "eth0", Gateway: gw4, MTU: 1400},
		{Device: "eth0", Gateway: gw6, IPv6: true},
		{Device: "eth0", Dest: prefix("10.0.0.7/24"), Source: src, Scope: 253},
		{Device: "enp1s0", Dest: prefix("10.1.0.0/16"), Gateway: gw4, Flags: 4 | 1},
	}
	base := netlink.Route{LinkIndex: 3, Family: unix.AF_INET, Protocol: 3, Table: 254, Type: 1}
	subnet, def4, def6, far := base, base, base, base
	subnet.Dst, subnet.Src, subnet.Scope = ipNet(prefix("10.0.0.0/24")), src.AsSlice(), 253
	def4.Dst, def4.Gw, def4.MTU = ipNet(prefix("0.0.0.0/0")), gw4.AsSlice(), 1400
	far.Dst, far.Gw, far.LinkIndex, far.Flags = ipNet(prefix("10.1.0.0/16")), gw4.AsSlice(), 2, unix.RTNH_F_ONLINK
	def6.Dst, def6.Gw, def6.Family = ipNet(prefix("::/0")), gw6.AsSlice(), unix.AF_INET6
	for _, ipv6 := range []bool{true, false} {
		plan, err := planRoutes(want, testLinks(), ipv6)
		expect := []netlink.Route{subnet, def4, far}
		if ipv6 {
			expect = append(expect, def6)
		}
		if diff := cmp.Diff(expect, plan); err != nil || diff != "" {
			t.Errorf("ipv6 %t: %v\n%s", ipv6, err, diff)
		}
	}
}

func TestPlanRoutesRefuses(t *testing.T) {
	gw4, gw6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for name, test := range map[string]struct {
		route Route
		text  string
	}{
		"absent device":      {Route{Device: "none"}, "Link not found"},
		"no device":          {Route{Gateway: gw4}, "Link not found"},
		"gateway family":     {Route{Device: "eth0", Dest: prefix("10.0.0.0/8"), Gateway: gw6}, "another family"},
		"default family":     {Route{Device: "eth0", Gateway: gw6}, "another family"},
		"source family":      {Route{Device: "eth0", IPv6: true, Source: gw4}, "another family"},
		"zone":               {Route{Device: "eth0", IPv6: true, Gateway: gw6.WithZone("eth1")}, "malformed"},
		"mapped destination": {Route{Device: "eth0", Dest: prefix("::ffff:10.0.0.0/104")}, "malformed"},
		"MTU":                {Route{Device: "eth0", MTU: 1 << 31}, "MTU"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := planRoutes([]Route{test.route}, testLinks(), true); err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v, want one with %q", err, test.text)
			}
		})
	}
	if _, err := planRoutes(make([]Route, maxRoutes+1), testLinks(), true); err == nil || errors.Is(err, ErrLinkNotFound) {
		t.Errorf("too many routes: %v", err)
	}
}

func TestRouteOf(t *testing.T) {
	_, all4, _ := net.ParseCIDR("0.0.0.0/0")
	_, some6, _ := net.ParseCIDR("fd00::/64")
	for name, test := range map[string]struct {
		in   netlink.Route
		want Route
		ok   bool
	}{
		"default": {
			netlink.Route{LinkIndex: 3, Type: 1, Family: unix.AF_INET, Dst: all4, Gw: net.IPv4(10, 0, 0, 1)},
			Route{Device: "eth0", Gateway: netip.MustParseAddr("10.0.0.1")},
			true,
		},
		"default without destination": {
			netlink.Route{LinkIndex: 3, Type: 1, Family: unix.AF_INET6, MTU: 1400},
			Route{Device: "eth0", IPv6: true, MTU: 1400},
			true,
		},
		"net": {
			netlink.Route{LinkIndex: 2, Type: 1, Family: unix.AF_INET6, Dst: some6, Scope: 253, Flags: 4},
			Route{Device: "enp1s0", IPv6: true, Dest: prefix("fd00::/64"), Scope: 253, Flags: 4},
			true,
		},
		"unknown link": {netlink.Route{LinkIndex: 9, Type: 1}, Route{}, false},
		"multicast":    {netlink.Route{LinkIndex: 3, Type: unix.RTN_MULTICAST}, Route{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := routeOf(test.in, testLinks()); ok != test.ok || got != test.want {
				t.Errorf("%+v, %t; want %+v, %t", got, ok, test.want, test.ok)
			}
		})
	}
}

func FuzzPlanInterface(f *testing.F) {
	f.Add("02:00:00:00:00:01", "eth0", uint64(1500), []byte{10, 0, 0, 1, 24})
	f.Add("02:00:00:00:00:02", "a%d", uint64(0), []byte{})
	f.Fuzz(func(t *testing.T, hw, name string, mtu uint64, address []byte) {
		want := Interface{HWAddr: hw, Name: name, MTU: mtu}
		if len(address) > 0 {
			a, _ := netip.AddrFromSlice(address[:len(address)-1])
			want.Addresses = []netip.Prefix{netip.PrefixFrom(a, int(address[len(address)-1]))}
		}
		plan, err := planInterface(want, testLinks(), true)
		if err != nil {
			return
		}
		if plan[0].action != setDown || plan[len(plan)-1].action != setUp {
			t.Errorf("plan %v", plan)
		}
		if slices.ContainsFunc(plan, func(c change) bool { return c.link == 1 || c.mtu < 0 || c.action == addAddress && !c.address.IsValid() }) {
			t.Errorf("plan %v", plan)
		}
	})
}
