// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"encoding/binary"
	"fmt"
)

// Sizes and fixed values of an IPIB (IPL parameter information block, of the type for protected guests).
const (
	ipibFixed     = 0x88 // up to the first component
	ipibBlock     = 0x08 // where the block for protected guests begins
	ipibEntry     = 24
	ipibType      = 5
	ipibVersion   = 1
	minIPIB       = 148 // what a hypervisor takes
	maxIPIB       = PageSize
	maxComponents = (maxIPIB - ipibFixed) / ipibEntry
)

// IPIB lists the components of an image for the hypervisor.
type IPIB struct {
	// Version is that of the block for protected guests: 1 as pvimg writes it, 0 as genprotimg does.
	Version uint8
	// HeaderAddress and HeaderSize say where the header is. At boot, stage3a replaces the address by what it knows.
	HeaderAddress, HeaderSize uint64
	// Components are in ascending order of address.
	Components []Component
}

// ParseIPIB reads an IPIB; data may go on after it. What it lists is as the image says and not checked.
func ParseIPIB(data []byte) (*IPIB, error) {
	if len(data) < ipibFixed {
		return nil, formatError(PartIPIB, 0, "cut off after %d bytes", len(data))
	}
	size, block := uint64(binary.BigEndian.Uint32(data)), uint64(binary.BigEndian.Uint32(data[ipibBlock:]))
	count := uint64(binary.BigEndian.Uint32(data[0x74:]))
	switch {
	case size < minIPIB || size > maxIPIB || size > uint64(len(data)):
		return nil, formatError(PartIPIB, 0, "length %d is not between %d and %d, or more than there is", size, minIPIB, maxIPIB)
	case data[0x07] != ipibVersion:
		return nil, formatError(PartIPIB, 0x07, "version %d, only %d is known", data[0x07], ipibVersion)
	case data[0x0c] != ipibType:
		return nil, formatError(PartIPIB, 0x0c, "type %d is not %d (protected guest)", data[0x0c], ipibType)
	case count == 0 || count > maxComponents || ipibFixed+count*ipibEntry > size:
		return nil, formatError(PartIPIB, 0x74, "%d components do not fit into %d bytes", count, size)
	case block != ipibFixed-ipibBlock+count*ipibEntry:
		return nil, formatError(PartIPIB, 0x08, "block length %d is not that of %d components", block, count)
	}
	p := &IPIB{
		Version:       data[0x6f],
		HeaderAddress: binary.BigEndian.Uint64(data[0x78:]),
		HeaderSize:    binary.BigEndian.Uint64(data[0x80:]),
		Components:    make([]Component, count),
	}
	for i := range p.Components {
		e := data[ipibFixed+i*ipibEntry:]
		p.Components[i] = Component{
			TweakPrefix: binary.BigEndian.Uint64(e), Address: binary.BigEndian.Uint64(e[8:]), Size: binary.BigEndian.Uint64(e[16:]),
		}
	}
	return p, nil
}

// Encode returns the IPIB without any padding.
func (p *IPIB) Encode() ([]byte, error) {
	if n := len(p.Components); n == 0 || n > maxComponents {
		return nil, fmt.Errorf("an IPIB lists 1 to %d components, not %d", maxComponents, n)
	}
	data := make([]byte, ipibFixed+len(p.Components)*ipibEntry)
	binary.BigEndian.PutUint32(data, uint32(len(data)))
	data[0x07] = ipibVersion
	binary.BigEndian.PutUint32(data[ipibBlock:], uint32(len(data)-ipibBlock))
	data[0x0c] = ipibType
	data[0x6f] = p.Version
	binary.BigEndian.PutUint32(data[0x74:], uint32(len(p.Components)))
	binary.BigEndian.PutUint64(data[0x78:], p.HeaderAddress)
	binary.BigEndian.PutUint64(data[0x80:], p.HeaderSize)
	for i, c := range p.Components {
		e := data[ipibFixed+i*ipibEntry:]
		binary.BigEndian.PutUint64(e, c.TweakPrefix)
		binary.BigEndian.PutUint64(e[8:], c.Address)
		binary.BigEndian.PutUint64(e[16:], c.Size)
	}
	return data, nil
}
