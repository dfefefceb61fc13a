// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"fmt"
	"log/slog"
	"net"

	"github.com/mdlayher/vsock"
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

// hostListener lets in, of vsock peers, none but the host (context id 2). A container can open vsock sockets of its own,
// and could otherwise reach the agent through the loopback of its guest.
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
		peer, ok := conn.RemoteAddr().(*vsock.Addr)
		if !ok || peer.ContextID == vsock.Host {
			return conn, nil
		}
		l.log.Warn("connection refused: not from the host", "peer", peer.String())
		_ = conn.Close()
	}
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
