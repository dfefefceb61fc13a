// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxRead bounds one read of a stream, in bytes: it is what a pipe holds unless somebody enlarges it.
const maxRead = 64 << 10

// stream is the agent's end of a pipe that a container process writes to.
//
// The end of the stream does not depend on the container: some time after the exit of its process it is cut off.
// What lies in the pipe then is still delivered, but a background process that keeps the pipe open, or keeps writing,
// cannot put the end off.
type stream struct {
	turn chan struct{} // holds a token while somebody reads

	mu   sync.Mutex
	file *os.File // nil at the end of the stream
	cut  bool
	left int // what may still be read once cut, in bytes
}

// newStream makes a pipe. The caller closes the writer once the container process has it.
func newStream() (s *stream, writer *os.File, err error) {
	var fds [2]int
	// The writer stays in blocking mode: the container process shares the mode, and expects no other.
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	writer = os.NewFile(uintptr(fds[1]), "stream writer")
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		_ = writer.Close()
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return &stream{turn: make(chan struct{}, 1), file: os.NewFile(uintptr(fds[0]), "stream")}, writer, nil
}

// read returns up to limit bytes, waiting for the first. No bytes and no error mean the end of the stream.
func (s *stream) read(ctx context.Context, limit int) ([]byte, error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.turn }()
	buf := make([]byte, min(limit, maxRead))
	for {
		s.mu.Lock()
		file, cut := s.file, s.cut
		s.mu.Unlock()
		if file == nil {
			return nil, nil
		}
		if cut {
			return s.readRest(buf), nil
		}
		n, err := s.readBlocking(ctx, file, buf)
		switch {
		case n > 0:
			return buf[:n], nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		case errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed):
			s.close()
			return nil, nil
		default:
			s.close()
			return nil, fmt.Errorf("read stream: %w", err)
		}
	}
}

// readBlocking is one read that ends early, with os.ErrDeadlineExceeded, when the context or the stream does.
func (s *stream) readBlocking(ctx context.Context, file *os.File, buf []byte) (int, error) {
	stop := context.AfterFunc(ctx, func() {
		_ = file.SetReadDeadline(time.Unix(1, 0)) // fails only if the file is closed
	})
	n, err := file.Read(buf)
	stop()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.mu.Lock()
		if !s.cut {
			_ = file.SetReadDeadline(time.Time{})
		}
		s.mu.Unlock()
	}
	return n, err
}

// readRest reads what was in the pipe when the stream was cut off.
func (s *stream) readRest(buf []byte) []byte {
	s.mu.Lock()
	file, left := s.file, s.left
	s.mu.Unlock()
	if file == nil {
		return nil
	}
	n := 0
	if buf = buf[:min(len(buf), left)]; len(buf) > 0 {
		control(file, func(fd int) {
			for {
				var err error
				if n, err = unix.Read(fd, buf); !errors.Is(err, unix.EINTR) {
					return
				}
			}
		})
	}
	if n <= 0 {
		s.close()
		return nil
	}
	s.mu.Lock()
	s.left -= n
	s.mu.Unlock()
	return buf[:n]
}

// cutOff limits the stream to what is in the pipe now.
func (s *stream) cutOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut || s.file == nil {
		return
	}
	s.cut = true
	control(s.file, func(fd int) {
		// TIOCINQ, also called FIONREAD, stores a C int.
		if n, err := unix.IoctlGetUint32(fd, unix.TIOCINQ); err == nil {
			s.left = int(n)
		}
	})
	_ = s.file.SetReadDeadline(time.Unix(1, 0))
}

// close ends the stream, for a reader that waits too. It may be called more than once.
func (s *stream) close() {
	s.mu.Lock()
	file := s.file
	s.file = nil
	s.mu.Unlock()
	if file != nil {
		_ = file.Close() // nothing was written
	}
}

// control calls f with the descriptor of an open file; f must not block. It does not care for read deadlines.
func control(file *os.File, f func(fd int)) {
	if conn, err := file.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { f(int(fd)) }) // fails only if the file is closed
	}
}
