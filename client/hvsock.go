// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// maxAnswer bounds the line that answers CONNECT, in bytes; the longest one is "OK 4294967295\n".
const maxAnswer = 32

// handshake asks a hypervisor's hybrid vsock socket for a port of the guest: "CONNECT PORT\n", answered by "OK
// HOSTPORT\n" (Firecracker, docs/vsock.md). What follows the answer belongs to the connection, so that the answer is
// read byte by byte. ctx bounds it.
func handshake(ctx context.Context, conn net.Conn, port uint32) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := connect(conn, port)
	if !stop() || ctx.Err() != nil { // the deadline may have been set, and would stay
		return fmt.Errorf("hybrid vsock handshake: %w; the guest has not opened vsock yet", context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("hybrid vsock handshake: %w", err)
	}
	return nil
}

func connect(conn io.ReadWriter, port uint32) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	answer, err := readLine(conn)
	if err != nil {
		return err
	}
	hostPort, ok := bytes.CutPrefix(answer, []byte("OK "))
	if !ok {
		return fmt.Errorf("answer %q instead of OK", answer)
	}
	if _, err := strconv.ParseUint(string(hostPort), 10, 32); err != nil {
		return fmt.Errorf("answer %q: no port after OK", answer)
	}
	return nil
}

// readLine reads up to a newline, which it drops, and not one byte further.
func readLine(r io.Reader) ([]byte, error) {
	var line []byte
	var b [1]byte
	for len(line) < maxAnswer {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, errors.New("connection closed: nothing in the guest listens on the port yet")
			}
			return nil, err
		}
		if b[0] == '\n' {
			return line, nil
		}
		line = append(line, b[0])
	}
	return nil, fmt.Errorf("answer of more than %d bytes", maxAnswer)
}
