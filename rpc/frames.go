// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/containerd/ttrpc"
)

// The header of a ttrpc message (containerd/ttrpc PROTOCOL.md): length and stream id, four bytes each, big-endian; type; flags.
const (
	frameHeaderSize  = 10
	frameTypeOffset  = 8
	frameTypeRequest = 1
	// maxFrame is what ttrpc takes at most, in bytes.
	maxFrame = 4 << 20
)

// shimListener is what a Server makes of every listener.
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
		if !l.open.connect() {
			l.log.Warn("connection refused: too many", "limit", maxConnections)
			_ = conn.Close()
			continue
		}
		return newRequestConn(conn, l.log, l.open), nil
	}
}

func newRequestConn(conn net.Conn, log *slog.Logger, open *openRequests) *requestConn {
	return &requestConn{Conn: conn, in: bufio.NewReader(conn), log: log, open: open, mine: make(map[uint32]int)}
}

// requestConn hands on whole frames, each checked before ttrpc decodes it. One goroutine reads and one writes.
type requestConn struct {
	net.Conn
	in       *bufio.Reader // of Conn: most requests are one read, header and body
	log      *slog.Logger
	open     *openRequests
	frame    []byte // what is left of the frame that is being handed on
	last     uint32 // stream id of the last request
	out      frameFollower
	mine     map[uint32]int // size of each open request by stream id; guarded by open.mu, nil once dropped
	closeOne sync.Once
}

// Read reads from the connection; what no honest shim sends ends the connection.
func (c *requestConn) Read(p []byte) (int, error) {
	if len(c.frame) == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.frame)
	c.frame = c.frame[n:]
	return n, nil
}

// next reads one frame. ttrpc would take any number of requests, whether their answers are read or not, and decode of
// each as much metadata as fits: the memory of PID 1 would be the host's to fill, before any policy is asked.
func (c *requestConn) next() error {
	var header [frameHeaderSize]byte
	if _, err := io.ReadFull(c.in, header[:]); err != nil {
		return err
	}
	size, id, kind := binary.BigEndian.Uint32(header[:4]), binary.BigEndian.Uint32(header[4:]), header[frameTypeOffset]
	switch {
	case kind != frameTypeRequest:
		return c.refuse("a frame that is no request", "type", kind)
	case size > maxFrame:
		return c.refuse("a frame that is too large", "bytes", size)
	case id%2 == 0 || id <= c.last:
		return c.refuse("a stream id that is even or does not increase", "id", id)
	case !c.open.begin(c, id, int(size)):
		return c.refuse("too many open requests", "limit", maxOpen, "limit_bytes", maxOpenBytes)
	}
	c.last = id
	frame := append(header[:], make([]byte, size)...)
	if _, err := io.ReadFull(c.in, frame[frameHeaderSize:]); err != nil {
		return err
	}
	if err := checkWire(frame[frameHeaderSize:], (*ttrpc.Request)(nil).ProtoReflect().Descriptor()); err != nil {
		return c.refuse("a malformed request", "error", err)
	}
	c.frame = frame
	return nil
}

// refuse ends the connection. It is closed at once: ttrpc, when it waits for an answer to be taken, reads nothing.
func (c *requestConn) refuse(why string, args ...any) error {
	c.log.Warn("connection dropped", append([]any{"reason", why}, args...)...)
	_ = c.Close()
	return fmt.Errorf("%s: %w", why, io.EOF) // EOF makes ttrpc forget the connection
}

// Write writes to the connection. Each frame answers one request, whose answer has then been handed to the kernel.
func (c *requestConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.out.follow(p[:n], func(id uint32) { c.open.end(c, id) })
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

// follow calls done with the stream id of each frame that ends in p.
func (f *frameFollower) follow(p []byte, done func(id uint32)) {
	for len(p) > 0 {
		if f.filled < frameHeaderSize {
			n := copy(f.header[f.filled:], p)
			f.filled += n
			p = p[n:]
			if f.filled < frameHeaderSize {
				return
			}
			f.body = binary.BigEndian.Uint32(f.header[:4])
		}
		n := min(int64(f.body), int64(len(p)))
		f.body -= uint32(n)
		p = p[n:]
		if f.body > 0 {
			return
		}
		f.filled = 0
		done(binary.BigEndian.Uint32(f.header[4:]))
	}
}
