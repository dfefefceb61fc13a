// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/cloister-cc/cloister/agent/netdev"
	"github.com/cloister-cc/cloister/rpc/pb/types"
)

func compareNetip() cmp.Option { return cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }) }

func TestInterfaceFromPB(t *testing.T) {
	t.Parallel()
	in := &types.Interface{
		Device: "eth0", Name: "net1", HwAddr: "02:00:00:aa:bb:cc", Mtu: 9000, RawFlags: 0x80, DevicePath: "02/03", Type: "physical",
		IPAddresses: []*types.IPAddress{
			{Address: "10.1.2.3", Mask: "24"},
			{Address: "10.1.2.4", Mask: "255.255.255.0"},
			{Address: "10.1.2.5", Mask: "0"},
			{Family: types.IPFamily_v6, Address: "fe80::1", Mask: "64"},
			{Family: types.IPFamily_v6, Address: "fd00::1", Mask: "ffff:ffff::"},
		},
	}
	want := netdev.Interface{
		Device: "eth0", Name: "net1", HWAddr: "02:00:00:aa:bb:cc", MTU: 9000, RawFlags: 0x80, DevicePath: "02/03", Type: "physical",
		Addresses: []netip.Prefix{
			netip.MustParsePrefix("10.1.2.3/24"), netip.MustParsePrefix("10.1.2.4/24"), netip.MustParsePrefix("10.1.2.5/0"),
			netip.MustParsePrefix("fe80::1/64"), netip.MustParsePrefix("fd00::1/32"),
		},
	}
	got, err := interfaceFromPB(in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compareNetip()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestInterfaceRefusals(t *testing.T) {
	t.Parallel()
	const mac = "02:00:00:00:00:01"
	address := func(family types.IPFamily, addr, mask string) *types.Interface {
		return &types.Interface{HwAddr: mac, IPAddresses: []*types.IPAddress{{Family: family, Address: addr, Mask: mask}}}
	}
	for name, in := range map[string]*types.Interface{
		"no MAC":            {},
		"EUI-64":            {HwAddr: "02:00:5e:10:00:00:00:01"},
		"long name":         {HwAddr: mac, Name: "0123456789abcdef"},
		"path as name":      {HwAddr: mac, Device: "../x"},
		"dots":              {HwAddr: mac, Name: ".."},
		"no address":        address(types.IPFamily_v4, "", "24"),
		"no mask":           address(types.IPFamily_v4, "10.0.0.1", ""),
		"mask too long":     address(types.IPFamily_v4, "10.0.0.1", "33"),
		"mask negative":     address(types.IPFamily_v4, "10.0.0.1", "-1"),
		"mask with holes":   address(types.IPFamily_v4, "10.0.0.1", "255.0.255.0"),
		"mask of v6":        address(types.IPFamily_v4, "10.0.0.1", "ffff::"),
		"family v6":         address(types.IPFamily_v6, "10.0.0.1", "24"),
		"family v4":         address(types.IPFamily_v4, "fe80::1", "64"),
		"zone":              address(types.IPFamily_v6, "fe80::1%eth0", "64"),
		"v4 in v6":          address(types.IPFamily_v6, "::ffff:10.0.0.1", "96"),
		"prefix as address": address(types.IPFamily_v4, "10.0.0.1/24", "24"),
	} {
		if got, err := interfaceFromPB(in); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   *types.Route
		want netdev.Route
		// back is the answer, where it is not in again.
		back *types.Route
	}{
		{in: &types.Route{Device: "eth0"}, want: netdev.Route{Device: "eth0"}},
		{in: &types.Route{Dest: "default"}, back: &types.Route{}},
		{in: &types.Route{Dest: "0.0.0.0/0"}, back: &types.Route{}},
		{in: &types.Route{Dest: "0.0.0.0"}, back: &types.Route{}},
		{in: &types.Route{Dest: "10.9.9.9/0"}, back: &types.Route{}},
		{
			in:   &types.Route{Dest: "::/0", Family: types.IPFamily_v6, Gateway: "fe80::1"},
			want: netdev.Route{IPv6: true, Gateway: netip.MustParseAddr("fe80::1")},
			back: &types.Route{Family: types.IPFamily_v6, Gateway: "fe80::1"},
		},
		{
			in: &types.Route{
				Dest: "10.1.0.0/16", Gateway: "10.0.0.1", Source: "10.0.0.2", Device: "eth0", Scope: 253, Flags: 4, Mtu: 1400,
			},
			want: netdev.Route{
				Dest: netip.MustParsePrefix("10.1.0.0/16"), Gateway: netip.MustParseAddr("10.0.0.1"),
				Source: netip.MustParseAddr("10.0.0.2"), Device: "eth0", Scope: 253, Flags: 4, MTU: 1400,
			},
		},
		{
			in:   &types.Route{Dest: "10.1.2.3"},
			want: netdev.Route{Dest: netip.MustParsePrefix("10.1.2.3/32")}, back: &types.Route{Dest: "10.1.2.3/32"},
		},
		{
			in:   &types.Route{Dest: "10.1.2.3/255.255.0.0"},
			want: netdev.Route{Dest: netip.MustParsePrefix("10.1.0.0/16")}, back: &types.Route{Dest: "10.1.0.0/16"},
		},
		{
			in:   &types.Route{Dest: "fd00::/8", Family: types.IPFamily_v6},
			want: netdev.Route{Dest: netip.MustParsePrefix("fd00::/8"), IPv6: true},
		},
	}
	for _, tt := range tests {
		got, err := routesFromPB([]*types.Route{tt.in})
		if err != nil {
			t.Errorf("%v: %v", tt.in, err)
			continue
		}
		if got[0] != tt.want {
			t.Errorf("%v: got %+v, want %+v", tt.in, got[0], tt.want)
		}
		back := tt.in
		if tt.back != nil {
			back = tt.back
		}
		if diff := cmp.Diff([]*types.Route{back}, routesToPB(got), protocmp.Transform()); diff != "" {
			t.Errorf("%v and back (-want +got):\n%s", tt.in, diff)
		}
	}
}

func TestRouteRefusals(t *testing.T) {
	t.Parallel()
	for _, in := range []*types.Route{
		{Dest: "nonsense"},
		{Dest: "10.0.0.0/33"},
		{Dest: "10.0.0.0/"},
		{Dest: "fd00::/8"},
		{Gateway: "fe80::1"},
		{Gateway: "10.0.0.1/24"},
		{Source: "x"},
		{Scope: 256},
		{Device: "a b"},
	} {
		if got, err := routesFromPB([]*types.Route{in}); err == nil {
			t.Errorf("%v: accepted as %+v", in, got)
		}
	}
}
