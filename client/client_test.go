// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"

	"github.com/cloister-cc/cloister/rpc/pb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type health struct {
	status pb.HealthCheckResponse_ServingStatus
}

func (h health) Check(context.Context, *pb.CheckRequest) (*pb.HealthCheckResponse, error) {
	return &pb.HealthCheckResponse{Status: h.status}, nil
}

func (health) Version(context.Context, *pb.CheckRequest) (*pb.VersionCheckResponse, error) {
	return &pb.VersionCheckResponse{AgentVersion: "9"}, nil
}

// serve answers Health on a unix socket; greet, unless nil, talks on each connection first.
func serve(t *testing.T, path string, status pb.HealthCheckResponse_ServingStatus, greet func(net.Conn) bool) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	pb.RegisterHealthService(s, health{status})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(context.Background(), &greeter{l, greet})
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
}

type greeter struct {
	net.Listener
	greet func(net.Conn) bool
}

func (g *greeter) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil || g.greet == nil || g.greet(conn) {
			return conn, err
		}
		_ = conn.Close()
	}
}

// hypervisor answers the handshake like a hybrid vsock device, and lets through what is for port 1024.
func hypervisor(conn net.Conn) bool {
	line, err := readLine(conn)
	if err != nil || string(line) != "CONNECT 1024" {
		return false
	}
	_, err = fmt.Fprint(conn, "OK 1073741824\n")
	return err == nil
}

func TestDial(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	serve(t, filepath.Join(dir, "unix"), pb.HealthCheckResponse_SERVING, nil)
	serve(t, filepath.Join(dir, "hv"), pb.HealthCheckResponse_SERVING, hypervisor)
	for _, address := range []string{"unix://" + dir + "/unix", "hvsock://" + dir + "/hv:1024"} {
		c, err := Dial(t.Context(), address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		v, err := c.Health().Version(t.Context(), &pb.CheckRequest{})
		if err != nil || v.GetAgentVersion() != "9" {
			t.Errorf("%s: %v, %v", address, v, err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("%s: close: %v", address, err)
		}
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	serve(t, filepath.Join(dir, "hv"), pb.HealthCheckResponse_SERVING, hypervisor)
	stale, err := net.Listen("unix", dir+"/stale")
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = stale.Close()
	for address, text := range map[string]string{
		"":                                      "not an address",
		"1024":                                  "not an address",
		"unix://":                               "not an address",
		"tcp://x:1":                             "unknown scheme",
		"vsock://3":                             "port is missing",
		"vsock://x:1":                           "context id",
		"vsock://4294967295:1":                  "context id",
		"vsock://3:-1":                          "no vsock port",
		"hvsock://" + dir + "/hv":               "port is missing",
		"hvsock://" + dir + "/hv:9999999999999": "no vsock port",
		"hvsock://" + dir + "/hv:1025":          "nothing in the guest listens",
		"unix://" + dir + "/none":               "does none name the socket of a running guest",
		"unix://" + dir + "/stale":              "start the guest again",
	} {
		c, err := Dial(t.Context(), address)
		if err == nil {
			_ = c.Close()
			t.Errorf("%q: connected", address)
		} else if !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), address) {
			t.Errorf("%q: %v, want %q", address, err, text)
		}
	}
}

// TestHandshakeTimeout: a hypervisor that takes the connection and never answers, as before the guest has its driver.
func TestHandshakeTimeout(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "hv")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c, err := Dial(ctx, "hvsock://"+path+":1024")
	if err == nil {
		_ = c.Close()
		t.Fatal("connected")
	}
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "has not opened vsock yet") {
		t.Errorf("got %v", err)
	}
}

// TestDialReady starts the agent only once the client is trying.
func TestDialReady(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "late")
	result := make(chan error, 1)
	go func() {
		c, err := DialReady(context.Background(), "hvsock://"+path+":1024")
		if err == nil {
			err = c.Close()
		}
		result <- err
	}()
	time.Sleep(3 * retryPause / 2) // not needed to pass: it makes the first attempt fail
	refused := false
	serve(t, path, pb.HealthCheckResponse_SERVING, func(conn net.Conn) bool {
		if !refused {
			refused = true
			return false
		}
		return hypervisor(conn)
	})
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestDialReadyGivesUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	serve(t, filepath.Join(dir, "sick"), pb.HealthCheckResponse_NOT_SERVING, nil)
	for address, text := range map[string]string{
		"unix://" + dir + "/none": "no such file",
		"unix://" + dir + "/sick": "NOT_SERVING",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*retryPause)
		_, err := DialReady(ctx, address)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want the deadline and %q", address, err, text)
		}
	}
	if _, err := DialReady(context.Background(), "nonsense"); err == nil {
		t.Error("a wrong address was accepted")
	}
}

// TestDialPort: of a guest's address, only the port is another; what comes at once is not lost.
func TestDialPort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	serveText(t, dir+"/hv", func(conn net.Conn) bool {
		line, err := readLine(conn)
		if err != nil || string(line) != "CONNECT 1025" {
			return false
		}
		_, err = fmt.Fprint(conn, "OK 1\n")
		return err == nil
	})
	serveText(t, dir+"/plain", func(net.Conn) bool { return true })
	for _, address := range []string{"hvsock://" + dir + "/hv:1024", "unix://" + dir + "/plain"} {
		conn, err := DialPort(t.Context(), address, 1025)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if data, err := io.ReadAll(conn); string(data) != "a line\n" || err != nil {
			t.Errorf("%s: %q, %v", address, data, err)
		}
		_ = conn.Close()
	}
	if _, err := DialPort(t.Context(), "nonsense", 1025); !errors.Is(err, ErrAddress) {
		t.Errorf("wrong address: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*retryPause)
	defer cancel()
	if _, err := DialPort(ctx, "hvsock://"+dir+"/hv:1024", 7); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "port 7 of the guest") {
		t.Errorf("port that is closed: %v", err)
	}
}

// serveText sends a line to each connection that greet lets in, and closes it.
func serveText(t *testing.T, path string, greet func(net.Conn) bool) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if greet(conn) {
				_, _ = fmt.Fprintln(conn, "a line")
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
}
