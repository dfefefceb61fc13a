// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"

	"github.com/mdlayher/vsock"
)

// The header of a ttrpc message (containerd/ttrpc PROTOCOL.md): length and stream id, four bytes each, big-endian; type; flags.
const (
	frameHeaderSize  = 10
	frameTypeOffset  = 8
	frameTypeRequest = 1
)

// shimListener is what a Server makes of every listener.
//
// Of vsock peers it lets in none but the host (context id 2). A container can open vsock sockets of its own, and could
// otherwise reach the agent through the loopback of its guest.
//
// Its connections carry requests and nothing else. None of our methods streams, and ttrpc 1.2.10 dereferences a nil
// stream, in a goroutine of its own, when a data frame names the stream of a running unary request: that ends PID 1.
type shimListener struct {
	net.Listener
	log *slog.Logger
}

// Accept returns the next connection that is let in.
func (l shimListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if peer, ok := conn.RemoteAddr().(*vsock.Addr); ok && peer.ContextID != vsock.Host {
			l.log.Warn("connection refused: not from the host", "peer", peer.String())
			_ = conn.Close()
			continue
		}
		return &requestConn{Conn: conn, log: l.log}, nil
	}
}

// requestConn follows the frames that are read from a connection. Only one goroutine reads.
type requestConn struct {
	net.Conn
	log    *slog.Logger
	header [frameHeaderSize]byte
	filled int    // bytes of header that are there
	body   uint32 // bytes of the frame's body still to come
	broken bool
}

// Read reads from the connection; after a frame that is no request it ends the connection.
func (c *requestConn) Read(p []byte) (int, error) {
	if c.broken {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if c.body > 0 {
			skip := min(int64(c.body), int64(len(rest)))
			c.body -= uint32(skip)
			rest = rest[skip:]
			continue
		}
		copied := copy(c.header[c.filled:], rest)
		c.filled += copied
		rest = rest[copied:]
		if c.filled < frameHeaderSize {
			break
		}
		if t := c.header[frameTypeOffset]; t != frameTypeRequest {
			c.broken = true
			c.log.Warn("connection dropped: a frame that is no request", "type", t)
			return 0, fmt.Errorf("ttrpc frame of type %d: %w", t, io.EOF) // EOF makes ttrpc close the connection
		}
		c.filled, c.body = 0, binary.BigEndian.Uint32(c.header[:4])
	}
	return n, err
}
