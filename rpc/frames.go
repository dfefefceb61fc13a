// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

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
	log  *slog.Logger
	open *openRequests
}

// Accept returns the next connection that is let in.
func (l *shimListener) Accept() (net.Conn, error) {
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
		return &requestConn{Conn: conn, log: l.log, open: l.open}, nil
	}
}

// requestConn follows the frames that pass a connection. One goroutine reads and one writes.
type requestConn struct {
	net.Conn
	log      *slog.Logger
	open     *openRequests
	in, out  frameFollower
	mine     int // open requests of this connection; guarded by open.mu
	broken   bool
	closeOne sync.Once
}

// Read reads from the connection; after a frame that is no request it ends the connection.
func (c *requestConn) Read(p []byte) (int, error) {
	if c.broken {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	ok := c.in.follow(p[:n], func(kind byte) bool {
		if kind != frameTypeRequest {
			c.log.Warn("connection dropped: a frame that is no request", "type", kind)
			return false
		}
		c.open.add(c, 1)
		return true
	})
	if !ok {
		c.broken = true
		return 0, fmt.Errorf("ttrpc frame of another type than request: %w", io.EOF) // EOF makes ttrpc close the connection
	}
	return n, err
}

// Write writes to the connection. Each frame answers one request, whose answer has then been handed to the kernel.
func (c *requestConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	answered := 0
	c.out.follow(p[:n], func(byte) bool { answered++; return true })
	c.open.add(c, -answered)
	return n, err
}

// Close closes the connection; its open requests will get no answer.
func (c *requestConn) Close() error {
	c.closeOne.Do(func() { c.open.drop(c) })
	return c.Conn.Close()
}

// frameFollower finds the ends of frames in a stream that passes in pieces.
type frameFollower struct {
	header [frameHeaderSize]byte
	filled int    // bytes of header that are there
	body   uint32 // bytes of the frame's body still to come
}

// follow calls done with the type of each frame that ends in p, until done returns false, and returns what it did.
func (f *frameFollower) follow(p []byte, done func(kind byte) bool) bool {
	for len(p) > 0 {
		if f.filled < frameHeaderSize {
			n := copy(f.header[f.filled:], p)
			f.filled += n
			p = p[n:]
			if f.filled < frameHeaderSize {
				return true
			}
			f.body = binary.BigEndian.Uint32(f.header[:4])
		}
		n := min(int64(f.body), int64(len(p)))
		f.body -= uint32(n)
		p = p[n:]
		if f.body > 0 {
			return true
		}
		f.filled = 0
		if !done(f.header[frameTypeOffset]) {
			return false
		}
	}
	return true
}

// openRequests counts the requests that have arrived and are not answered yet. ttrpc itself takes a connection with a
// running request for idle, until it has answered one, and closes it under the request when it shuts down.
type openRequests struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n becomes 0; nil if nobody waits
}

func (o *openRequests) add(c *requestConn, delta int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.mine < 0 {
		return // dropped
	}
	delta = max(delta, -c.mine)
	c.mine += delta
	o.change(delta)
}

func (o *openRequests) drop(c *requestConn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.change(-c.mine)
	c.mine = -1
}

func (o *openRequests) change(delta int) {
	o.n += delta
	if o.n == 0 && o.none != nil {
		close(o.none)
		o.none = nil
	}
}

// wait returns when no request is open or ctx has ended.
func (o *openRequests) wait(ctx context.Context) error {
	o.mu.Lock()
	if o.n == 0 {
		o.mu.Unlock()
		return nil
	}
	if o.none == nil {
		o.none = make(chan struct{})
	}
	none := o.none
	o.mu.Unlock()
	select {
	case <-none:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for running requests: %w", context.Cause(ctx))
	}
}
