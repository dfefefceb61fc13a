// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"testing"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/cloister-cc/cloister/agent/netdev"
	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/rpc/pb/types"
)

// memoryConn reads from a buffer, and notes what is written and whether it was closed.
type memoryConn struct {
	net.Conn
	in     *bytes.Reader
	closed bool
}

func (c *memoryConn) Read(p []byte) (int, error) { return c.in.Read(p) }
func (c *memoryConn) Write(p []byte) (int, error) {
	return len(p), nil
}

func (c *memoryConn) Close() error {
	c.closed = true
	return nil
}

// FuzzFrames: whatever comes over a connection, ttrpc gets nothing but whole requests with stream ids that increase,
// no more bytes than have come, and the account of what is open ends at zero.
func FuzzFrames(f *testing.F) {
	request := func(id uint32, r *ttrpc.Request) []byte {
		body, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		return append(frame(id, frameTypeRequest, len(body)), body...)
	}
	one := request(1, &ttrpc.Request{Service: "grpc.Health", Method: "Check", Payload: []byte{1, 2}})
	f.Add(one)
	f.Add(slices.Concat(one, request(3, &ttrpc.Request{Metadata: []*ttrpc.KeyValue{{Key: "k", Value: "v"}}})))
	f.Add(slices.Concat(one, one))
	f.Add(frame(1, 2, 0))
	f.Add(frame(1, frameTypeRequest, maxFrame+1))
	f.Add(one[:len(one)-1])
	f.Fuzz(func(t *testing.T, data []byte) {
		open := &openRequests{}
		if !open.connect() {
			t.Fatal("no connection is allowed")
		}
		raw := &memoryConn{in: bytes.NewReader(data)}
		c := newRequestConn(raw, orDiscard(nil), open)
		got, err := io.ReadAll(c)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read: %v", err)
		}
		if !bytes.HasPrefix(data, got) {
			t.Errorf("handed on %x of %x", got, data)
		}
		last := uint32(0)
		for rest := got; len(rest) > 0; {
			size, id := binary.BigEndian.Uint32(rest), binary.BigEndian.Uint32(rest[4:])
			if id%2 == 0 || id <= last || rest[frameTypeOffset] != frameTypeRequest {
				t.Errorf("frame %x after stream %d", rest[:frameHeaderSize], last)
			}
			if err := checkWire(rest[frameHeaderSize:frameHeaderSize+size], (*ttrpc.Request)(nil).ProtoReflect().Descriptor()); err != nil {
				t.Error(err)
			}
			last, rest = id, rest[frameHeaderSize+size:]
		}
		if err := c.Close(); err != nil || !raw.closed || open.n != 0 || open.bytes != 0 || open.connections != 0 {
			t.Errorf("closed: %v, %t, open %d requests, %d bytes, %d connections", err, raw.closed, open.n, open.bytes, open.connections)
		}
	})
}

// FuzzFrameFollower: the frames that are found do not depend on the pieces in which they pass.
func FuzzFrameFollower(f *testing.F) {
	two := slices.Concat(frame(1, 2, 3), []byte("abc"), frame(3, 2, 0))
	f.Add(two, byte(1))
	f.Add(two, byte(11))
	f.Add(two[:15], byte(4))
	f.Fuzz(func(t *testing.T, data []byte, size byte) {
		var whole, pieces frameFollower
		var want, got []uint32
		whole.follow(data, func(id uint32) { want = append(want, id) })
		for piece := range slices.Chunk(data, int(size)+1) {
			pieces.follow(piece, func(id uint32) { got = append(got, id) })
		}
		if !slices.Equal(want, got) || whole.body != pieces.body || whole.filled != pieces.filled {
			t.Errorf("at once %v, in pieces %v", want, got)
		}
	})
}

// FuzzWire: what checkWire lets pass of any request has bounded lists and no repeated fields, and the translations of
// it do not panic.
func FuzzWire(f *testing.F) {
	var all []proto.Message
	for _, s := range services() {
		for i := range s.Methods().Len() {
			all = append(all, newMessage(f, s.Methods().Get(i).Input()))
		}
	}
	for i, m := range all {
		var next uint64
		m := proto.Clone(m)
		fill(m.ProtoReflect(), &next)
		f.Add(byte(i), encode(f, m))
	}
	f.Fuzz(func(t *testing.T, kind byte, raw []byte) {
		m := proto.Clone(all[int(kind)%len(all)])
		if err := decode(func(obj any) error { return proto.Unmarshal(raw, obj.(proto.Message)) }, m); err != nil {
			return
		}
		if again := encode(t, m); len(again) > 4*len(raw)+64 {
			t.Errorf("%d bytes have become %d", len(raw), len(again))
		}
		var err error
		switch m := m.(type) {
		case *pb.CreateSandboxRequest:
			_, err = sandboxConfig(m)
		case *pb.CreateContainerRequest:
			_, err = containerConfig(m)
		case *pb.ExecProcessRequest:
			_, err = execProcess(m)
		case *pb.UpdateContainerRequest:
			_, err = resourcesFromPB(m.GetResources())
		case *pb.UpdateEphemeralMountsRequest:
			_, err = storagesFromPB(m.GetStorages())
		}
		if err != nil && len(clean(err.Error())) > maxErrorText+len(" …") {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
	})
}

// FuzzNetwork: interfaces and routes that are accepted are what netlink takes: valid prefixes and names of links, and a
// route comes back as it was.
func FuzzNetwork(f *testing.F) {
	f.Add("eth0", "02:00:00:00:00:01", "192.0.2.1", "24", "", "192.0.2.254", false)
	f.Add("eth0", "02:00:00:00:00:01", "2001:db8::1", "64", "2001:db8:1::/48", "2001:db8::2", true)
	f.Add("../x", "02", "::ffff:1.2.3.4", "255.0.255.0", "default", "fe80::1%eth0", true)
	f.Add("a b", "", "0.0.0.0", "0", "0.0.0.0/0", "", false)
	f.Fuzz(func(t *testing.T, device, mac, address, mask, dest, gateway string, v6 bool) {
		family := types.IPFamily_v4
		if v6 {
			family = types.IPFamily_v6
		}
		i, err := interfaceFromPB(&types.Interface{
			Device: device, Name: device, HwAddr: mac, IPAddresses: []*types.IPAddress{{Address: address, Mask: mask, Family: family}},
		})
		if err == nil && (!i.Addresses[0].IsValid() || i.Addresses[0].Addr().Is6() != v6 || len(i.Device) > maxLinkName) {
			t.Errorf("accepted %+v", i)
		}
		r, err := routeFromPB(&types.Route{Device: device, Dest: dest, Gateway: gateway, Source: address, Family: family})
		if err != nil {
			return
		}
		if r.Dest.IsValid() && (r.Dest != r.Dest.Masked() || r.Dest.Addr().Is6() != v6) || r.IPv6 != v6 {
			t.Errorf("accepted %+v", r)
		}
		back, err := routesFromPB(routesToPB([]netdev.Route{r}))
		if err != nil || back[0] != r {
			t.Errorf("%+v became %+v (%v)", r, back, err)
		}
	})
}
