// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Limits of what all connections together may have open. A shim needs one or two connections.
const (
	maxConnections = 64
	// maxOpen bounds the requests that have come and whose answers have not been taken yet. It is above what the guard
	// serves at a time, so that a request too many is answered, unless the host takes no answers.
	maxOpen = 2 * maxInFlight
	// lingerTime is how long a server that shuts down leaves the closing of connections to its peers.
	lingerTime = 300 * time.Millisecond
	// maxOpenBytes bounds the size of these requests: some 2000 writes to containers that do not read fit.
	maxOpenBytes = 16 * maxFrame
)

// openRequests counts connections, and the requests that have arrived and are not answered yet. ttrpc itself takes a
// connection with a running request for idle, until it has answered one, and closes it under the request when it shuts
// down.
type openRequests struct {
	mu          sync.Mutex
	connections int
	n, bytes    int
	none        chan struct{} // closed when n becomes 0; nil if nobody waits
	alone       chan struct{} // closed when connections becomes 0; nil if nobody waits
}

// connect counts a connection; false if there are too many.
func (o *openRequests) connect() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.connections >= maxConnections {
		return false
	}
	o.connections++
	return true
}

// begin counts a request of that stream id and size; false if it is one too many.
func (o *openRequests) begin(c *requestConn, id uint32, size int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.mine == nil || o.n >= maxOpen || o.bytes+size > maxOpenBytes {
		return false
	}
	c.mine[id] = size
	o.n++
	o.bytes += size
	return true
}

// end notes that a request has been answered.
func (o *openRequests) end(c *requestConn, id uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.remove(c, id)
}

// drop forgets a connection and its requests.
func (o *openRequests) drop(c *requestConn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id := range c.mine {
		o.remove(c, id)
	}
	c.mine = nil
	o.connections--
	if o.connections == 0 && o.alone != nil {
		close(o.alone)
		o.alone = nil
	}
}

func (o *openRequests) remove(c *requestConn, id uint32) {
	size, ok := c.mine[id]
	if !ok {
		return
	}
	delete(c.mine, id)
	o.n--
	o.bytes -= size
	if o.n == 0 && o.none != nil {
		close(o.none)
		o.none = nil
	}
}

// wait returns when no request is open or ctx has ended.
func (o *openRequests) wait(ctx context.Context) error {
	if err := await(ctx, &o.mu, func() bool { return o.n == 0 }, &o.none); err != nil {
		return fmt.Errorf("wait for running requests: %w", err)
	}
	return nil
}

// linger returns when every peer has closed its connection, or after a while. A peer that writes to a connection that is
// closed may drop the answers that it has not read yet, the one to DestroySandbox above all.
func (o *openRequests) linger(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lingerTime)
	defer cancel()
	_ = await(ctx, &o.mu, func() bool { return o.connections == 0 }, &o.alone) // then they are closed
}

// await waits for a condition, of whose coming true the channel that it puts into wake tells.
func await(ctx context.Context, mu *sync.Mutex, met func() bool, wake *chan struct{}) error {
	mu.Lock()
	if met() {
		mu.Unlock()
		return nil
	}
	if *wake == nil {
		*wake = make(chan struct{})
	}
	done := *wake
	mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
