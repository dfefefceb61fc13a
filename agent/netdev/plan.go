// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLinkNotFound is in the errors for a link that is not there. The Kata shim looks for its text and tries again.
var ErrLinkNotFound = errors.New("Link not found") //nolint:staticcheck // ST1005: the shim's text

// link is the state of a network link, as far as plans need it.
type link struct {
	index     int
	name      string
	hwaddr    net.HardwareAddr
	up        bool
	addresses []netip.Prefix
}

// action is one kind of change to a link.
type action string

const (
	setDown       action = "set down"
	setUp         action = "set up"
	deleteAddress action = "delete address"
	addAddress    action = "add address" // or replace it
	rename        action = "rename"
	setMTU        action = "set MTU"
	setARP        action = "set ARP on"
	clearARP      action = "set ARP off"
)

// change is one step of a plan; which of the last three fields counts depends on the action.
type change struct {
	action  action
	link    int // index
	address netip.Prefix
	name    string
	mtu     int
}

const (
	maxAddresses = 256
	minMTU       = 68 // RFC 791
	maxMTU       = 1 << 20
)

// planInterface works out how a link gets into the wanted state: down, addresses replaced, renamed (a link that has
// the name takes the old one), MTU, ARP, up. Without ipv6, IPv6 addresses are left out.
func planInterface(want Interface, links []link, ipv6 bool) ([]change, error) {
	name := want.Name
	if name == "" {
		name = want.Device
	}
	if err := checkInterface(want, name); err != nil {
		return nil, err
	}
	l, err := byHWAddr(links, want.HWAddr)
	if err != nil {
		return nil, err
	}
	plan := []change{{action: setDown, link: l.index}}
	for _, a := range l.addresses {
		if !slices.Contains(want.Addresses, a) {
			plan = append(plan, change{action: deleteAddress, link: l.index, address: a})
		}
	}
	for _, a := range want.Addresses {
		if a.Addr().Is4() || ipv6 {
			plan = append(plan, change{action: addAddress, link: l.index, address: a})
		}
	}
	if name != "" && name != l.name {
		plan = append(plan, planRename(l, name, links)...)
	}
	if want.MTU != 0 {
		plan = append(plan, change{action: setMTU, link: l.index, mtu: int(want.MTU)})
	}
	arp := setARP
	if want.RawFlags&unix.IFF_NOARP != 0 {
		arp = clearARP
	}
	return append(plan, change{action: arp, link: l.index}, change{action: setUp, link: l.index}), nil
}

// planRename gives a link a name. A link that has it already takes the old name, by way of a third one.
func planRename(l *link, name string, links []link) []change {
	i := slices.IndexFunc(links, func(other link) bool { return other.name == name })
	if i < 0 {
		return []change{{action: rename, link: l.index, name: name}}
	}
	other := links[i]
	plan := []change{
		{action: setDown, link: other.index},
		{action: rename, link: other.index, name: spareName(links)},
		{action: rename, link: l.index, name: name},
		{action: rename, link: other.index, name: l.name},
	}
	if other.up {
		plan = append(plan, change{action: setUp, link: other.index})
	}
	return plan
}

// spareName returns a name that no link has.
func spareName(links []link) string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("swap%d", i)
		if !slices.ContainsFunc(links, func(l link) bool { return l.name == name }) {
			return name
		}
	}
}

func checkInterface(want Interface, name string) error {
	if name != "" {
		if err := checkName(name); err != nil {
			return err
		}
	}
	if want.MTU != 0 && (want.MTU < minMTU || want.MTU > maxMTU) {
		return fmt.Errorf("MTU %d is not in %d..%d", want.MTU, minMTU, maxMTU)
	}
	if len(want.Addresses) > maxAddresses {
		return fmt.Errorf("%d addresses, at most %d are offered", len(want.Addresses), maxAddresses)
	}
	for _, a := range want.Addresses {
		if !a.IsValid() || a.Addr().Is4In6() || a.Addr().Zone() != "" {
			return fmt.Errorf("address %v is malformed", a)
		}
	}
	return nil
}

// checkName reports an error for what the kernel does not take as the name of a link, or takes as a pattern.
func checkName(name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || name == "lo" ||
		strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:%", r) }) {
		return fmt.Errorf("link name %.32q is malformed", name)
	}
	return nil
}

// byHWAddr finds the link with a hardware address of six bytes.
func byHWAddr(links []link, address string) (*link, error) {
	hw, err := net.ParseMAC(address)
	if err != nil || len(hw) != 6 || bytes.Equal(hw, make([]byte, 6)) {
		return nil, fmt.Errorf("hardware address %.64q is not six bytes as in 02:00:00:00:00:01", address)
	}
	for i := range links {
		if bytes.Equal(links[i].hwaddr, hw) {
			return &links[i], nil
		}
	}
	return nil, fmt.Errorf("%w: none has the hardware address %s", ErrLinkNotFound, hw)
}
