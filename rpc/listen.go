// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/mdlayher/vsock"
)

// Listen opens the listener of an address:
//
//	vsock://-1:1024      port 1024 of any context id of this machine
//	unix:///run/a.sock   a unix socket; one that a former agent has left is replaced
//	unix://@name         an abstract unix socket
//
// The unix forms are for an agent that is a plain process. Who may connect is up to the Server.
func Listen(address string) (net.Listener, error) {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		return nil, fmt.Errorf("listen on %q: use vsock://CID:PORT or unix://PATH", address)
	}
	switch scheme {
	case "vsock":
		cid, port, err := parseVsock(rest)
		if err != nil {
			return nil, fmt.Errorf("listen on %q: %w", address, err)
		}
		l, err := vsock.ListenContextID(cid, port, nil)
		if err != nil {
			return nil, fmt.Errorf("listen on %q: %w", address, err)
		}
		return l, nil
	case "unix":
		if rest == "" {
			return nil, fmt.Errorf("listen on %q: the path is missing", address)
		}
		l, err := listenUnix(rest)
		if err != nil {
			return nil, fmt.Errorf("listen on %q: %w", address, err)
		}
		return l, nil
	default:
		return nil, fmt.Errorf("listen on %q: unknown scheme %q, use vsock:// or unix://", address, scheme)
	}
}

// listenUnix binds a unix socket. A path that nobody listens on any more is bound anew.
func listenUnix(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path) //nolint:noctx // binding a unix socket does not block
	if !errors.Is(err, syscall.EADDRINUSE) || strings.HasPrefix(path, "@") {
		return l, err
	}
	conn, dialErr := net.Dial("unix", path) //nolint:noctx // nor does connecting to one
	if dialErr == nil {
		_ = conn.Close()
	}
	if !errors.Is(dialErr, syscall.ECONNREFUSED) {
		return nil, err
	}
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	return net.Listen("unix", path) //nolint:noctx // as above
}

// parseVsock reads "CID:PORT"; CID -1 is VMADDR_CID_ANY.
func parseVsock(s string) (cid, port uint32, err error) {
	cidText, portText, ok := strings.Cut(s, ":")
	if !ok {
		return 0, 0, fmt.Errorf("%q is not CID:PORT", s)
	}
	cid = math.MaxUint32
	if cidText != "-1" {
		n, err := strconv.ParseUint(cidText, 10, 32)
		if err != nil {
			return 0, 0, fmt.Errorf("context id %q is neither -1 nor a number", cidText)
		}
		cid = uint32(n)
	}
	n, err := strconv.ParseUint(portText, 10, 32)
	if err != nil || n == math.MaxUint32 {
		return 0, 0, fmt.Errorf("port %q is not a number below 2^32-1", portText)
	}
	return cid, uint32(n), nil
}
