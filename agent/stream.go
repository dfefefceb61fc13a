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

// maxTerminal bounds what is still read of a terminal after the exit of its process, in bytes. The kernel holds at most
// 64 KiB of a terminal's output and one page of what has been processed of it, but does not tell how much.
const maxTerminal = 128 << 10

// hungUpPause is how long a reader waits before it looks again at a terminal that no process has open.
const hungUpPause = 50 * time.Millisecond

// stream is the agent's end of a pipe, or of a terminal, that a container process writes to.
//
// The end of the stream does not depend on the container: some time after the exit of its process it is cut off.
// What lies in the pipe then is still delivered, but a background process that keeps the pipe open, or keeps writing,
// cannot put the end off.
type stream struct {
	turn chan struct{} // holds a token while somebody reads
	// exited is closed at the exit of a terminal's process; nil for a pipe.
	exited <-chan struct{}

	mu   sync.Mutex
	file *os.File // nil at the end of the stream
	cut  bool
	left int // what may still be read once cut, in bytes
}

// newStream makes a pipe of size bytes, or of the kernel's default size for 0. The caller closes the writer once the
// container process has it.
func newStream(size int) (s *stream, writer *os.File, err error) {
	reader, writer, err := newPipe(size, 0)
	if err != nil {
		return nil, nil, err
	}
	return &stream{turn: make(chan struct{}, 1), file: reader}, writer, nil
}

// newPipe makes a pipe of which the agent keeps one end, 0 for the reader and 1 for the writer. The other one stays in
// blocking mode: the container process shares the mode, and expects no other.
func newPipe(size, ours int) (reader, writer *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	if err = unix.SetNonblock(fds[ours], true); err == nil && size > 0 {
		_, err = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, size)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make pipe of %d bytes: %w", size, err), unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "pipe reader"), os.NewFile(uintptr(fds[1]), "pipe writer"), nil
}

// newTerminalStream reads the master end of a pseudo-terminal, which must be in non-blocking mode.
func newTerminalStream(master *os.File, exited <-chan struct{}) *stream {
	return &stream{turn: make(chan struct{}, 1), file: master, exited: exited}
}

// endedStream is a stream of nothing.
func endedStream() *stream { return &stream{turn: make(chan struct{}, 1)} }

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
		over := s.over() // before the read, which then sees all that the process has written
		n, err := s.readBlocking(ctx, file, buf)
		switch {
		case n > 0:
			return buf[:n], nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		case errors.Is(err, unix.EIO) && s.exited != nil && !over:
			s.awaitTerminal(ctx)
		case errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EIO) && over:
			s.close()
			return nil, nil
		default:
			s.close()
			return nil, fmt.Errorf("read stream: %w", err)
		}
	}
}

// over tells whether the process of a terminal has exited.
func (s *stream) over() bool {
	select {
	case <-s.exited: // never, if it is nil
		return true
	default:
		return false
	}
}

// awaitTerminal waits a little while nobody has the terminal open though its process runs: it may open it again.
func (s *stream) awaitTerminal(ctx context.Context) {
	select {
	case <-s.exited:
	case <-ctx.Done(): // the next read returns that
	case <-time.After(hungUpPause):
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
	if s.exited != nil {
		s.left = maxTerminal
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
		return
	}
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
