// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// Client is a connection to an agent. All calls share it, blocking ones too.
type Client struct {
	ttrpc  *ttrpc.Client
	agent  pb.AgentServiceService
	health pb.HealthService
}

// Dial connects to the agent at address:
//
//	hvsock://SOCKET:PORT  a hypervisor's unix socket that speaks the hybrid vsock handshake (Firecracker, Cloud
//	                      Hypervisor, vhost-device-vsock)
//	vsock://CID:PORT      a guest's context id and port
//	unix://PATH           a unix socket; unix://@NAME is an abstract one
//
// ctx bounds connecting, not the calls that follow. Errors say what to look at next; a wrong address is ErrAddress.
func Dial(ctx context.Context, address string) (*Client, error) {
	conn, err := dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("connect to agent at %s: %w", address, err)
	}
	return New(conn), nil
}

// New makes a client of a connection, which it owns from then on.
func New(conn net.Conn) *Client {
	c := ttrpc.NewClient(conn)
	return &Client{ttrpc: c, agent: pb.NewAgentServiceClient(c), health: pb.NewHealthClient(c)}
}

// Agent returns the agent's service.
func (c *Client) Agent() pb.AgentServiceService { return c.agent }

// Health returns the health service.
func (c *Client) Health() pb.HealthService { return c.health }

// Close ends the connection; running calls return an error.
func (c *Client) Close() error { return c.ttrpc.Close() }

// How DialReady and DialPort pace themselves.
const (
	retryPause       = 100 * time.Millisecond
	connectTimeout   = 5 * time.Second
	readinessTimeout = 30 * time.Second
)

// DialReady connects to an agent whose guest may still be booting: it tries until the agent has answered Health.Check
// or ctx ends, whose deadline the caller sets. A wrong address ends it at once, with ErrAddress.
func DialReady(ctx context.Context, address string) (*Client, error) {
	if _, err := parse(address); err != nil {
		return nil, fmt.Errorf("connect to agent at %s: %w", address, err)
	}
	return await(ctx, "agent at "+address, func() (*Client, error) { return dialCheck(ctx, address) })
}

// DialPort connects to another port of the guest whose agent is at address, where the agent may offer its log or a
// console, as soon as something listens there. ctx bounds connecting. The address unix://PATH has no ports: it is that of
// the port itself. A wrong address is ErrAddress.
func DialPort(ctx context.Context, address string, port uint32) (net.Conn, error) {
	t, err := parse(address)
	if err != nil {
		return nil, fmt.Errorf("connect to guest at %s: %w", address, err)
	}
	t.port = port
	return await(ctx, fmt.Sprintf("port %d of the guest at %s", port, address), func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		return t.dial(ctx)
	})
}

// await calls f until it succeeds or ctx ends.
func await[T any](ctx context.Context, what string, f func() (T, error)) (T, error) {
	var last error // that the time is over says less than why the attempt before failed
	for {
		v, err := f()
		if err == nil {
			return v, nil
		}
		if last == nil || !over(ctx) {
			last = err
		}
		select {
		case <-ctx.Done():
			var none T
			return none, &notReadyError{what: what, cause: context.Cause(ctx), last: last}
		case <-time.After(retryPause):
		}
	}
}

// notReadyError is the end of await's patience.
type notReadyError struct {
	what        string
	cause, last error
}

func (e *notReadyError) Error() string {
	return fmt.Sprintf("%s is not ready: %v (%v)", e.what, e.last, e.cause)
}

func (e *notReadyError) Unwrap() []error { return []error{e.cause, e.last} }

// Hint says what to do about it.
func (e *notReadyError) Hint() string { return "is the guest still booting? Look at its console" }

// over tells whether ctx has ended, or will as soon as its timer runs: a dial that has the same deadline may be earlier.
func over(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || (ok && !time.Now().Before(deadline))
}

func dialCheck(ctx context.Context, address string) (*Client, error) {
	connectCtx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := dial(connectCtx, address)
	if err != nil {
		return nil, err
	}
	c := New(conn)
	checkCtx, cancel := context.WithTimeout(ctx, readinessTimeout)
	defer cancel()
	answer, err := c.health.Check(checkCtx, &pb.CheckRequest{})
	if err == nil && answer.GetStatus() != pb.HealthCheckResponse_SERVING {
		err = fmt.Errorf("agent says %s", answer.GetStatus())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("check health: %w", err), c.Close())
	}
	return c, nil
}
