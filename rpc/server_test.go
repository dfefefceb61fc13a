// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/mdlayher/vsock"

	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/rpc/pb"
)

// gated is a sandbox whose calls block until released, or until their context ends.
func gated() (sandbox *fakeSandbox, entered chan struct{}, release chan struct{}) {
	entered, release = make(chan struct{}, 1000), make(chan struct{})
	return &fakeSandbox{on: func(ctx context.Context, _ string) error {
		entered <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}, entered, release
}

// TestBlockingCalls: WaitProcess and reads block for as long as a container runs. On one connection, they must not keep
// each other or Check from being served.
func TestBlockingCalls(t *testing.T) {
	t.Parallel()
	sandbox, entered, release := gated()
	r := newRig(t, sandbox, AllowAll)
	const n = 99
	var wg sync.WaitGroup
	for i := range n {
		method := []string{"WaitProcess", "ReadStdout", "ReadStderr"}[i%3]
		wg.Go(func() {
			if _, err := r.call(t.Context(), t, method, fmt.Sprintf(`container_id: "c%d" %s`, i+10, map[bool]string{true: "len: 1"}[isRead(method)])); err != nil {
				t.Errorf("%s: %v", method, err)
			}
		})
	}
	for range n {
		<-entered
	}
	if _, err := r.call(t.Context(), t, "Check", ``); err != nil {
		t.Errorf("Check while %d calls block: %v", n, err)
	}
	close(release)
	wg.Wait()
}

func TestClientDeadline(t *testing.T) {
	t.Parallel()
	sandbox, _, _ := gated()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := newRig(t, sandbox, AllowAll).call(ctx, t, "WaitProcess", `container_id: "c1"`); err == nil {
		t.Error("the call outlived its deadline")
	}
}

// TestClose cancels running requests; TestShutdown lets them end and be answered.
func TestClose(t *testing.T) {
	t.Parallel()
	sandbox, entered, _ := gated()
	r := newRig(t, sandbox, AllowAll)
	done := make(chan error, 1)
	go func() {
		_, err := r.call(context.Background(), t, "WaitProcess", `container_id: "c1"`)
		done <- err
	}()
	<-entered
	if err := r.server.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-done; err == nil {
		t.Error("the request succeeded")
	}
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	sandbox, entered, release := gated()
	r := newRig(t, sandbox, AllowAll)
	done := make(chan error, 1)
	go func() {
		_, err := r.call(context.Background(), t, "DestroySandbox", ``)
		done <- err
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- r.server.Shutdown(context.Background()) }()
	for { // no new connections once it has begun
		conn, err := net.Dial("unix", r.path)
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the running request: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func TestServeAfterClose(t *testing.T) {
	t.Parallel()
	s, err := NewServer(Config{Sandbox: &fakeSandbox{}, Machine: fakeMachine{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen("unix://" + t.TempDir() + "/s")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), l); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is still open: %v", err)
	}
}

func TestServeEndsWithContext(t *testing.T) {
	t.Parallel()
	s, err := NewServer(Config{Sandbox: &fakeSandbox{}, Machine: fakeMachine{}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen("unix://" + t.TempDir() + "/s")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestNewServerNeedsSandbox(t *testing.T) {
	t.Parallel()
	if _, err := NewServer(Config{Gate: AllowAll}); err == nil {
		t.Error("a server without a sandbox")
	}
}

// TestHostileFrames: threat: the host sends what ttrpc would answer, decode or keep at a cost. Seen: the connection is
// dropped, and the server serves on.
func TestHostileFrames(t *testing.T) {
	t.Parallel()
	check := encode(t, &ttrpc.Request{Service: "grpc.Health", Method: "Check"})
	request := append(frame(1, frameTypeRequest, len(check)), check...)
	metadata := bytes.Repeat([]byte{5<<3 | 2, 0}, 2<<20) // 170 MiB once decoded
	for name, test := range map[string]struct {
		frames []byte
		want   string
	}{
		"too large":       {frame(1, frameTypeRequest, maxFrame+1), "too large"},
		"even stream id":  {frame(2, frameTypeRequest, 0), "even"},
		"same stream id":  {slices.Concat(request, request), "does not increase"},
		"not protobuf":    {append(frame(1, frameTypeRequest, 1), 0xff), "malformed"},
		"endless headers": {append(frame(1, frameTypeRequest, len(metadata)), metadata...), "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, &fakeSandbox{}, DenyAll)
			conn := r.dial(t)
			defer conn.Close()
			go func() { _, _ = conn.Write(test.frames) }()
			_, _ = io.Copy(io.Discard, conn) // until the server closes it
			if !strings.Contains(r.log.String(), test.want) {
				t.Errorf("log: %s", r.log)
			}
			if _, err := r.call(t.Context(), t, "Check", ``); err != nil {
				t.Errorf("after it: %v", err)
			}
		})
	}
}

// TestAnswersNotTaken: threat: the host sends requests and reads no answer, so that each is kept. Seen: at some number,
// or some size, of open requests the connection is dropped, and what it had is given back.
func TestAnswersNotTaken(t *testing.T) {
	t.Parallel()
	for name, payload := range map[string]int{"many": 0, "large": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, &fakeSandbox{}, DenyAll)
			conn := r.dial(t)
			defer conn.Close()
			body := encode(t, &ttrpc.Request{Service: "grpc.AgentService", Method: "WaitProcess", Payload: make([]byte, payload)})
			var err error
			for id := uint32(1); err == nil && id < 1<<20; id += 2 {
				_, err = conn.Write(append(frame(id, frameTypeRequest, len(body)), body...))
			}
			if err == nil {
				t.Fatal("half a million requests are open")
			}
			if !strings.Contains(r.log.String(), "too many open requests") {
				t.Errorf("log: %s", r.log)
			}
			if err := r.server.open.wait(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := r.call(t.Context(), t, "Check", ``); err != nil {
				t.Errorf("after it: %v", err)
			}
		})
	}
}

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	r := newRig(t, &fakeSandbox{}, DenyAll)
	var conns []net.Conn
	for range maxConnections {
		conns = append(conns, r.dial(t))
	}
	if _, err := conns[len(conns)-1].Read(make([]byte, 1)); err == nil { // two are the rig's
		t.Error("one too many was let in")
	}
	for _, c := range conns {
		_ = c.Close()
	}
	for { // their ends take a moment to be seen
		c, err := client.Dial(t.Context(), "unix://"+r.path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Health().Check(t.Context(), &pb.CheckRequest{})
		_ = c.Close()
		if err == nil {
			break
		}
	}
}

func frame(stream uint32, kind byte, length int) []byte {
	f := binary.BigEndian.AppendUint32(nil, uint32(length))
	return append(binary.BigEndian.AppendUint32(f, stream), kind, 0)
}

// TestDataFrame: threat: a data frame for the stream of a running unary request makes ttrpc dereference nil in its own
// goroutine, and PID 1 ends. Seen: the connection is dropped, the server serves on. Without requestConn this test
// crashes the test binary.
func TestDataFrame(t *testing.T) {
	t.Parallel()
	sandbox, entered, _ := gated()
	r := newRig(t, sandbox, AllowAll)
	conn := r.dial(t)
	defer conn.Close()
	payload := encode(t, &pb.WaitProcessRequest{ContainerId: "c1"})
	body := encode(t, &ttrpc.Request{Service: "grpc.AgentService", Method: "WaitProcess", Payload: payload})
	if _, err := conn.Write(append(frame(1, frameTypeRequest, len(body)), body...)); err != nil {
		t.Fatal(err)
	}
	<-entered
	for _, b := range frame(1, 3, 0) { // byte by byte: a header may arrive in pieces
		if _, err := conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the connection lives on: %d, %v", n, err)
	}
	if _, err := r.call(t.Context(), t, "Check", ``); err != nil {
		t.Errorf("after the data frame: %v", err)
	}
	if !strings.Contains(r.log.String(), "a frame that is no request") {
		t.Errorf("log: %s", r.log)
	}
}

// vsockListener hands out connections from the given context ids, then ends.
type vsockListener struct{ cids []uint32 }

func (l *vsockListener) Close() error   { return nil }
func (l *vsockListener) Addr() net.Addr { return &vsock.Addr{} }
func (l *vsockListener) Accept() (net.Conn, error) {
	if len(l.cids) == 0 {
		return nil, io.EOF
	}
	cid := l.cids[0]
	l.cids = l.cids[1:]
	a, b := net.Pipe()
	_ = b.Close()
	return vsockConn{a, cid}, nil
}

type vsockConn struct {
	net.Conn
	cid uint32
}

func (c vsockConn) RemoteAddr() net.Addr { return &vsock.Addr{ContextID: c.cid, Port: 1} }

// TestOnlyTheHostIsLetIn: threat: a container dials the agent through the guest's own vsock loopback. Seen: of all peers
// only context id 2 gets through; the others are closed.
func TestOnlyTheHostIsLetIn(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	peers := &vsockListener{cids: []uint32{vsock.Local, 3, vsock.Host, vsock.Hypervisor, vsock.Host, 77}}
	l := shimListener{hostListener{peers, log}, log, &openRequests{}}
	for range 2 {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if a := conn.RemoteAddr().(*vsock.Addr); a.ContextID != vsock.Host {
			t.Errorf("let in %s", a)
		}
		_ = conn.Close()
	}
	if _, err := l.Accept(); !errors.Is(err, io.EOF) {
		t.Errorf("one more was let in: %v", err)
	}
}

func TestListenRefusals(t *testing.T) {
	t.Parallel()
	for address, text := range map[string]string{
		"":                       "use vsock://",
		"1024":                   "use vsock://",
		"tcp://127.0.0.1:1":      "unknown scheme",
		"unix://":                "path is missing",
		"vsock://1024":           "not CID:PORT",
		"vsock://x:1":            "context id",
		"vsock://-2:1":           "context id",
		"vsock://-1:x":           "port",
		"vsock://-1:4294967295":  "port",
		"unix:///no/such/dir/xx": "no such file",
	} {
		l, err := Listen(address)
		if err == nil {
			_ = l.Close()
			t.Errorf("%q: listens", address)
		} else if !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), address) {
			t.Errorf("%q: %v, want %q", address, err, text)
		}
	}
}

func TestListenAbstract(t *testing.T) {
	t.Parallel()
	l, err := Listen(fmt.Sprintf("unix://@cloister-rpc-test-%d", time.Now().UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
