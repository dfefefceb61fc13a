// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package unpack

import (
	"errors"
	"fmt"
	"io"
)

// Buffers of a stage of the pipeline: how many there are, and their sizes in bytes before and after decompression. The
// reader of a stage is at most that far ahead of the next one.
const (
	aheadBuffers    = 3
	compressedAhead = 32 << 10
	plainAhead      = 64 << 10
)

// piece is a filled buffer, and the error that came after its bytes.
type piece struct {
	data []byte
	err  error
}

// ahead reads r in a goroutine of its own, so that what r does and what its reader does go on at the same time. Memory is
// bounded by the buffers. Errors come after the bytes before them.
type ahead struct {
	filled chan piece
	free   chan []byte
	stop   chan struct{} // closed by Close
	done   chan struct{} // closed by the goroutine at its end
	now    piece
	buf    []byte // of now
}

// readAhead starts to read r. Until Close has returned nobody else may.
func readAhead(r io.Reader, size int) *ahead {
	a := &ahead{
		filled: make(chan piece, aheadBuffers), free: make(chan []byte, aheadBuffers), stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadBuffers {
		a.free <- make([]byte, size)
	}
	go a.run(r)
	return a
}

// run fills buffers until r ends or Close is called.
func (a *ahead) run(r io.Reader) {
	defer close(a.done)
	defer close(a.filled)
	for {
		select {
		case <-a.stop:
			return
		case buf := <-a.free:
			p := a.fill(r, buf)
			a.filled <- p // has room for all buffers
			if p.err != nil {
				return
			}
		}
	}
}

// fill reads until buf is full. A panic over what comes from a registry would end the whole program here, where nobody
// recovers it: it becomes an error.
func (a *ahead) fill(r io.Reader, buf []byte) (p piece) {
	defer func() {
		if c := recover(); c != nil {
			p = piece{err: fmt.Errorf("%w: %v", errPanic, c)}
		}
	}()
	n := 0
	for n < len(buf) && !a.stopped() {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil {
			return piece{buf[:n], err}
		}
	}
	return piece{buf[:n], nil}
}

func (a *ahead) stopped() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

var errPanic = errors.New("reading the layer panicked")

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.now.data) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.buf != nil {
			a.free <- a.buf // has room for all buffers
			a.buf = nil
		}
		next, ok := <-a.filled
		if !ok {
			return 0, io.ErrClosedPipe
		}
		a.now, a.buf = next, next.data[:cap(next.data)]
	}
	n := copy(p, a.now.data)
	a.now.data = a.now.data[n:]
	return n, nil
}

// Close waits for the one Read of r that goes on, and stops. Who reads at the same time gets what is in the buffers, and
// then an error. It is called once.
func (a *ahead) Close() {
	close(a.stop)
	<-a.done
}
