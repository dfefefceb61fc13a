// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/containerd/ttrpc"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// Server serves the agent API. Make one with NewServer.
type Server struct {
	ttrpc *ttrpc.Server
	log   *slog.Logger
	open  openRequests

	mu        sync.Mutex
	listeners []net.Listener
	cancels   []context.CancelFunc
	stopping  bool
}

// Config is what a Server serves. Sandbox and Machine are required.
type Config struct {
	Sandbox Sandbox
	Machine Machine
	// Gate is asked first about each request; nil denies everything, Health included.
	Gate Gate
	// Log may be nil.
	Log *slog.Logger
	// Version is what Health.Version and GetGuestDetails tell.
	Version string
	// Wrap, if not nil, goes around every request, refused ones too: to trace it, or to measure it.
	Wrap func(ttrpc.UnaryServerInterceptor) ttrpc.UnaryServerInterceptor
}

// NewServer returns a server of the agent API.
func NewServer(c Config) (*Server, error) {
	if c.Sandbox == nil || c.Machine == nil {
		return nil, errors.New("make agent API server: Sandbox and Machine are required")
	}
	log := orDiscard(c.Log)
	intercept := (&guard{gate: c.Gate, log: log}).intercept
	if c.Wrap != nil {
		intercept = c.Wrap(intercept)
	}
	t, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(intercept))
	if err != nil {
		return nil, fmt.Errorf("make agent API server: %w", err)
	}
	pb.RegisterAgentServiceService(t, &agentService{sandbox: c.Sandbox, machine: c.Machine, version: c.Version})
	pb.RegisterHealthService(t, &healthService{version: c.Version})
	return &Server{ttrpc: t, log: log}, nil
}

// Serve accepts connections on l until the server is closed or ctx ends, and closes l. Calling it again with a further
// listener is fine. After Close and Shutdown it returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	ctx, cancel := context.WithCancel(ctx)
	if !s.begin(l, cancel) {
		cancel()
		return l.Close()
	}
	err := s.ttrpc.Serve(withTTRPCLog(ctx, s.log), &shimListener{hostListener{l, s.log}, s.log, &s.open})
	if s.isStopping() {
		return nil
	}
	return fmt.Errorf("serve agent API: %w", err)
}

func (s *Server) begin(l net.Listener, cancel context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.listeners = append(s.listeners, l)
	s.cancels = append(s.cancels, cancel)
	return true
}

func (s *Server) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// stop ends accepting connections.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	for _, l := range s.listeners {
		_ = l.Close() // ttrpc closes it again
	}
	s.listeners = nil
}

// Shutdown stops accepting connections, waits until every request has been answered or ctx has ended, leaves the peers a
// moment to close their connections, then closes what is left. An agent shuts down when its sandbox has been destroyed, while the answer to that request is still on its way.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	err := s.open.wait(ctx)
	if err == nil {
		s.open.linger(ctx)
	}
	return errors.Join(err, s.Close())
}

// Close stops accepting connections and cancels the context of every running request.
func (s *Server) Close() error {
	s.stop()
	s.mu.Lock()
	cancels := s.cancels
	s.cancels = nil
	s.mu.Unlock()
	err := s.ttrpc.Close()
	for _, cancel := range cancels {
		cancel()
	}
	if errors.Is(err, net.ErrClosed) {
		return nil // stop has closed the listeners
	}
	return err
}

func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
