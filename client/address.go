// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/mdlayher/vsock"
)

// target is a parsed address.
type target struct {
	scheme string
	// path is the unix socket of "unix" and "hvsock".
	path string
	// cid and port are those of "vsock", port that of "hvsock" too.
	cid, port uint32
}

// ErrAddress is in the errors for a text that is not an address, whatever runs behind it.
var ErrAddress = errors.New("not an address")

func badAddress(format string, args ...any) error {
	return fmt.Errorf("%w: %s: use hvsock://SOCKET:PORT, vsock://CID:PORT or unix://PATH", ErrAddress, fmt.Sprintf(format, args...))
}

func parse(address string) (target, error) {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok || rest == "" {
		return target{}, badAddress("the scheme or what follows it is missing")
	}
	switch scheme {
	case "unix":
		return target{scheme: scheme, path: rest}, nil
	case "hvsock", "vsock":
	default:
		return target{}, badAddress("unknown scheme %q", scheme)
	}
	colon := strings.LastIndexByte(rest, ':')
	if colon <= 0 {
		return target{}, badAddress("the port is missing")
	}
	port, err := strconv.ParseUint(rest[colon+1:], 10, 32)
	if err != nil || port == math.MaxUint32 {
		return target{}, badAddress("port %q is no vsock port", rest[colon+1:])
	}
	t := target{scheme: scheme, path: rest[:colon], port: uint32(port)}
	if scheme == "vsock" {
		cid, err := strconv.ParseUint(t.path, 10, 32)
		if err != nil || cid == math.MaxUint32 {
			return target{}, badAddress("%q is no context id of a guest", t.path)
		}
		t.cid, t.path = uint32(cid), ""
	}
	return t, nil
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	t, err := parse(address)
	if err != nil {
		return nil, err
	}
	return t.dial(ctx)
}

func (t target) dial(ctx context.Context) (net.Conn, error) {
	if t.scheme == "vsock" {
		conn, err := vsock.DialContext(ctx, t.cid, t.port, nil)
		if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w; this machine has no vsock: load the kernel module vhost_vsock", err)
		}
		return conn, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", t.path)
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, hint(t.path, err))
	}
	if t.scheme == "hvsock" {
		if err := handshake(ctx, conn, t.port); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return conn, nil
}

// hint says what to do about a unix socket that cannot be connected to.
func hint(path string, err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Sprintf("; does %s name the socket of a running guest? It appears when the hypervisor starts", filepath.Base(path))
	case errors.Is(err, syscall.ECONNREFUSED):
		return "; nothing listens on the socket any more: start the guest again"
	case errors.Is(err, os.ErrPermission):
		return "; run as the user who started the guest"
	default:
		return ""
	}
}
