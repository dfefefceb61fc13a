// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// ListenHost opens a vsock port for the host alone. log may be nil.
func ListenHost(port uint32, log *slog.Logger) (net.Listener, error) {
	l, err := Listen(fmt.Sprintf("vsock://-1:%d", port))
	if err != nil {
		return nil, err
	}
	return hostListener{l, orDiscard(log)}, nil
}

// hostListener lets in, of vsock peers, none but the host (context id 2), and of the peers of a unix socket none but root and
// the agent's own user. A container can open vsock sockets of its own, and could otherwise reach the agent through the
// loopback of its guest. Any user of a machine can connect to an abstract unix socket, and so can root in a container, for
// it shares the agent's network: a socket with a path is the better one.
type hostListener struct {
	net.Listener
	log *slog.Logger
}

// Accept returns the next connection that is let in.
func (l hostListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if peer, ok := mayConnect(conn); !ok {
			l.log.Warn("connection refused: not from the host", "peer", peer)
			_ = conn.Close()
			continue
		}
		return conn, nil
	}
}

// mayConnect tells whether a connection is let in, and if not, whose it is.
func mayConnect(conn net.Conn) (peer string, ok bool) {
	if addr, ok := conn.RemoteAddr().(*vsock.Addr); ok {
		return addr.String(), addr.ContextID == vsock.Host
	}
	local, ok := conn.(*net.UnixConn)
	if !ok {
		return "", true // a pipe of the program's own
	}
	raw, err := local.SyscallConn()
	if err != nil {
		return err.Error(), false
	}
	var cred *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(controlErr, err); err != nil {
		return err.Error(), false
	}
	return fmt.Sprintf("user %d, process %d", cred.Uid, cred.Pid), cred.Uid == 0 || int(cred.Uid) == os.Geteuid()
}

// Methods returns the names of all methods of the agent API, of both services.
func Methods() []string {
	var names []string
	for _, s := range []protoreflect.ServiceDescriptor{
		pb.File_rpc_pb_agent_proto.Services().ByName("AgentService"),
		pb.File_rpc_pb_health_proto.Services().ByName("Health"),
	} {
		for i := range s.Methods().Len() {
			names = append(names, string(s.Methods().Get(i).Name()))
		}
	}
	return names
}
