// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package netdev

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// skipOutsideGuest skips what this machine does not offer; the test guest must offer it.
func skipOutsideGuest(t *testing.T, why string, err error) {
	t.Helper()
	if os.Getenv("CLOISTER_GUEST") == "1" {
		t.Fatalf("%s: %v", why, err)
	}
	t.Skipf("%s: %v", why, err)
}

// inNetNS runs a test in a network namespace of its own, on a thread that ends with it. The test fails by t.Error.
func inNetNS(t *testing.T, f func(t *testing.T, h *netlink.Handle)) {
	t.Helper()
	skip := make(chan error)
	go func() {
		defer close(skip)
		runtime.LockOSThread() // for good: the thread does not go back to the others
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			skip <- err
			return
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			t.Error(err)
			return
		}
		defer h.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = "first", mac(1)
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "second", PeerHardwareAddr: mac(2)}); err != nil {
			skip <- err
			return
		}
		f(t, h)
	}()
	if err := <-skip; err != nil {
		skipOutsideGuest(t, "a network namespace with links needs root and the kernel's veth driver", err)
	}
}

func TestLoopbackUp(t *testing.T) {
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ended <- err
			return
		}
		defer close(ended)
		for range 2 {
			if err := New().LoopbackUp(); err != nil {
				t.Error(err)
			}
		}
		if lo, err := net.InterfaceByName("lo"); err != nil || lo.Flags&net.FlagUp == 0 {
			t.Errorf("loopback: %+v, %v", lo, err)
		}
		want := Interface{HWAddr: "02:00:00:00:00:ff"}
		if err := New().UpdateInterface(t.Context(), want); !errors.Is(err, ErrLinkNotFound) || !strings.Contains(err.Error(), "Link not found") {
			t.Errorf("absent link: %v", err)
		}
	}()
	if err := <-ended; err != nil {
		skipOutsideGuest(t, "a network namespace needs root", err)
	}
}

func TestUpdateInterface(t *testing.T) {
	inNetNS(t, func(t *testing.T, h *netlink.Handle) {
		t.Helper()
		l := New()
		update := func(want Interface) {
			t.Helper()
			if err := l.UpdateInterface(t.Context(), want); err != nil {
				t.Error(err)
			}
		}
		state := func(index int) link {
			t.Helper()
			links, err := list(h)
			if err != nil {
				t.Error(err)
			}
			i := slices.IndexFunc(links, func(l link) bool { return l.hwaddr.String() == mac(byte(index)).String() })
			if i < 0 {
				t.Errorf("no link %d in %v", index, links)
				return link{}
			}
			return links[i]
		}
		want := Interface{HWAddr: "02:00:00:00:00:01", Name: "eth0", MTU: 1400, RawFlags: unix.IFF_NOARP, Addresses: []netip.Prefix{prefix("192.0.2.2/24"), prefix("192.0.2.3/24")}}
		if l.ipv6() {
			want.Addresses = append(want.Addresses, prefix("fd00::2/64"))
		}
		for range 2 { // the second time nothing may change
			update(want)
			got := state(1)
			for _, a := range want.Addresses {
				if !slices.Contains(got.addresses, a) {
					t.Errorf("address %v is missing in %v", a, got.addresses)
				}
			}
			if got.name != "eth0" || !got.up {
				t.Errorf("link %+v", got)
			}
		}
		if eth0, err := h.LinkByName("eth0"); err != nil || eth0.Attrs().MTU != 1400 || eth0.Attrs().RawFlags&unix.IFF_NOARP == 0 {
			t.Errorf("eth0: %+v, %v", eth0, err)
		}
		update(Interface{HWAddr: "02:00:00:00:00:01", Name: "eth0", Addresses: []netip.Prefix{prefix("192.0.2.9/24")}})
		got := slices.DeleteFunc(state(1).addresses, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
		if !slices.Equal(got, []netip.Prefix{prefix("192.0.2.9/24")}) {
			t.Errorf("addresses are not replaced: %v", got)
		}
		if eth0, err := h.LinkByName("eth0"); err != nil || eth0.Attrs().RawFlags&unix.IFF_NOARP != 0 {
			t.Errorf("ARP is still off: %+v, %v", eth0, err)
		}
		update(Interface{HWAddr: "02:00:00:00:00:02", Name: "eth0"})
		if one, two := state(1), state(2); one.name != "second" || two.name != "eth0" || !one.up || !two.up {
			t.Errorf("after the swap: %+v and %+v", one, two)
		}
	})
}

func TestUpdateRoutes(t *testing.T) {
	inNetNS(t, func(t *testing.T, _ *netlink.Handle) {
		t.Helper()
		l := New()
		for _, want := range []Interface{
			{HWAddr: "02:00:00:00:00:02"}, // its peer, so that eth0 has a carrier
			{HWAddr: "02:00:00:00:00:01", Name: "eth0", Addresses: []netip.Prefix{prefix("192.0.2.2/32")}},
		} {
			if err := l.UpdateInterface(t.Context(), want); err != nil {
				t.Error(err)
			}
		}
		gateway, source := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		want := []Route{ // the gateway can be reached only by the second
			{Device: "eth0", Gateway: gateway, MTU: 1300},
			{Device: "eth0", Dest: prefix("192.0.2.1/32"), Scope: unix.RT_SCOPE_LINK, Source: source},
			{Device: "eth0", Dest: prefix("198.51.100.0/24"), Gateway: gateway},
		}
		for range 2 {
			got, err := l.UpdateRoutes(t.Context(), want)
			if err != nil {
				t.Error(err)
				return
			}
			for _, w := range want {
				if !slices.Contains(got, w) {
					t.Errorf("route %+v is missing in %+v", w, got)
				}
			}
		}
		_, err := l.UpdateRoutes(t.Context(), []Route{{Device: "eth9", Dest: prefix("203.0.113.0/24")}})
		if !errors.Is(err, ErrLinkNotFound) {
			t.Errorf("route over a link that is not there: %v", err)
		}
		if _, err := l.UpdateRoutes(t.Context(), []Route{{Device: "eth0", Gateway: netip.MustParseAddr("203.0.113.1")}}); err == nil {
			t.Error("a gateway that cannot be reached was taken")
		}
	})
}
