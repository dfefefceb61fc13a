// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/mdlayher/vsock"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

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
	s, err := NewServer(&fakeSandbox{}, nil, nil, "")
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
	s, err := NewServer(&fakeSandbox{}, nil, nil, "")
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
	if _, err := NewServer(nil, AllowAll, nil, ""); err == nil {
		t.Error("a server without a sandbox")
	}
}

func TestTooLargeMessage(t *testing.T) {
	t.Parallel()
	r := newRig(t, &fakeSandbox{}, AllowAll)
	// the client refuses to send it; a hostile one does not: header and body by hand
	conn := r.dial(t)
	defer conn.Close()
	go func() { _, _ = conn.Write(append(frame(1, frameTypeRequest, 5<<20), make([]byte, 5<<20)...)) }()
	header := make([]byte, frameHeaderSize)
	if _, err := io.ReadFull(conn, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint32(header))
	if _, err := io.ReadFull(conn, body); err != nil {
		t.Fatal(err)
	}
	var resp ttrpc.Response
	if err := proto.Unmarshal(body, &resp); err != nil {
		t.Fatal(err)
	}
	if codes.Code(resp.GetStatus().GetCode()) != codes.ResourceExhausted {
		t.Errorf("answered %v", &resp)
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
	l := shimListener{&vsockListener{cids: []uint32{vsock.Local, 3, vsock.Host, vsock.Hypervisor, vsock.Host, 77}}, slog.New(slog.DiscardHandler), &openRequests{}}
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
