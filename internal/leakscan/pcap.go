// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package leakscan

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
)

// Fixed values of the pcap format (draft-ietf-opsawg-pcap) and of the protocols in it.
const (
	pcapHeader     = 24
	pcapRecord     = 16
	maxPacket      = 1 << 20
	maxPackets     = 1 << 24
	linkEthernet   = 1
	etherIPv4      = 0x0800
	etherIPv6      = 0x86dd
	protocolTCP    = 6
	ethernetHeader = 14
)

// pcapMarks are the first bytes of a capture in either byte order, with microseconds or nanoseconds.
var pcapMarks = map[uint32]binary.ByteOrder{
	0xa1b2c3d4: binary.BigEndian, 0xa1b23c4d: binary.BigEndian, 0xd4c3b2a1: binary.LittleEndian, 0x4d3cb2a1: binary.LittleEndian,
}

// segment is a piece of one direction of a TCP connection.
type segment struct {
	seq    uint32
	offset int64 // of its data in the capture
	size   int
}

// flow names one direction of a connection.
type flow struct{ from, to netip.AddrPort }

// isPcap says whether a source begins like a capture.
func isPcap(head []byte) bool {
	return len(head) >= 4 && pcapMarks[binary.BigEndian.Uint32(head)] != nil
}

// tcpFlows reads a capture and returns the segments of each direction of each connection. A record that is cut off ends
// the capture, as when QEMU was killed; anything else that is wrong is an error.
func tcpFlows(r io.Reader) (map[flow][]segment, error) {
	in := bufio.NewReaderSize(r, 256<<10)
	head := make([]byte, pcapHeader)
	if _, err := io.ReadFull(in, head); err != nil {
		return nil, fmt.Errorf("read capture: %w", err)
	}
	order := pcapMarks[binary.BigEndian.Uint32(head)]
	if order == nil {
		return nil, errors.New("read capture: not a pcap file")
	}
	if link := order.Uint32(head[20:]); link&0xffff != linkEthernet {
		return nil, fmt.Errorf("read capture: link type %d, only Ethernet is known", link)
	}
	flows := make(map[flow][]segment)
	offset := int64(pcapHeader)
	var packet []byte
	for range maxPackets {
		record := make([]byte, pcapRecord)
		if _, err := io.ReadFull(in, record); err != nil {
			return flows, ended(err)
		}
		size := order.Uint32(record[8:])
		if size > maxPacket {
			return nil, fmt.Errorf("read capture: packet of %d bytes", size)
		}
		packet = slices.Grow(packet[:0], int(size))[:size]
		if _, err := io.ReadFull(in, packet); err != nil {
			return flows, ended(err)
		}
		offset += pcapRecord
		if f, s, ok := parseTCP(packet); ok && s.size > 0 {
			s.offset += offset
			flows[f] = append(flows[f], s)
		}
		offset += int64(size)
	}
	return nil, fmt.Errorf("read capture: more than %d packets", maxPackets)
}

func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return fmt.Errorf("read capture: %w", err)
}

// parseTCP reads a packet; the segment's offset is in the packet. ok is false for anything but a whole TCP segment.
func parseTCP(packet []byte) (f flow, s segment, ok bool) {
	if len(packet) < ethernetHeader {
		return f, s, false
	}
	from, to, start, end, ok := parseIP(packet, binary.BigEndian.Uint16(packet[12:]))
	if !ok || end-start < 20 {
		return f, s, false
	}
	tcp := packet[start:end]
	data := int(tcp[12]>>4) * 4
	if data < 20 || data > len(tcp) {
		return f, s, false
	}
	f = flow{netip.AddrPortFrom(from, binary.BigEndian.Uint16(tcp)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(tcp[2:]))}
	seq := binary.BigEndian.Uint32(tcp[4:])
	if tcp[13]&2 != 0 { // SYN counts as one byte
		seq++
	}
	return f, segment{seq: seq, offset: int64(start + data), size: len(tcp) - data}, true
}

// parseIP returns the addresses of a packet and where its TCP segment lies.
func parseIP(packet []byte, kind uint16) (from, to netip.Addr, start, end int, ok bool) {
	ip := packet[ethernetHeader:]
	switch {
	case kind == etherIPv4 && len(ip) >= 20 && ip[9] == protocolTCP:
		head, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if head < 20 || total < head || total > len(ip) {
			return from, to, 0, 0, false
		}
		from, to = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		return from, to, ethernetHeader + head, ethernetHeader + total, true
	case kind == etherIPv6 && len(ip) >= 40 && ip[6] == protocolTCP:
		total := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		if total > len(ip) {
			return from, to, 0, 0, false
		}
		from, to = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		return from, to, ethernetHeader + 40, ethernetHeader + total, true
	default:
		return from, to, 0, 0, false
	}
}

// inOrder sorts segments by their place in the stream, sequence numbers wrapping around, and cuts what was sent twice.
func inOrder(segments []segment) []segment {
	if len(segments) == 0 {
		return nil
	}
	base := segments[0].seq
	place := func(s segment) int32 { return int32(s.seq - base) }
	sorted := slices.Clone(segments)
	slices.SortStableFunc(sorted, func(a, b segment) int { return cmp.Compare(place(a), place(b)) })
	out := sorted[:0]
	next := place(sorted[0])
	for _, s := range sorted {
		if twice := int(next) - int(place(s)); twice > 0 {
			if twice >= s.size {
				continue
			}
			s.seq += uint32(twice)
			s.offset += int64(twice)
			s.size -= twice
		}
		next = place(s) + int32(s.size)
		out = append(out, s)
	}
	return out
}
