// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package leakscan

import (
	"bufio"
	"compress/gzip"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds the memory of a zstd stream, in bytes; what asks for more is reported.
const maxZstdWindow = 128 << 20

// stream is a compressed stream in a source. A goroutine decompresses what is fed and searches it, until the stream ends
// or turns out to be none.
type stream struct {
	in   *io.PipeWriter
	done chan struct{}
}

func newStream(parent *scanner, kind, where string) *stream {
	out, in := io.Pipe()
	s := &stream{in: in, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		inflate(parent, kind, where, out)
		_ = out.Close() // ends feed
	}()
	return s
}

// feed reports whether the stream wants more.
func (s *stream) feed(data []byte) bool {
	_, err := s.in.Write(data)
	return err == nil
}

// end says that there is no more, and waits.
func (s *stream) end() {
	_ = s.in.Close() // never fails
	<-s.done
}

// inflate searches what a stream holds. Where it ends in an error, the bytes before that have been searched: the mark may
// have been there by chance.
func inflate(parent *scanner, kind, where string, in io.Reader) {
	r, closeReader, err := decompressor(kind, in)
	if err != nil {
		if errors.Is(err, zstd.ErrWindowSizeExceeded) {
			parent.found.skip(where + ": it wants too much memory")
		}
		return
	}
	defer closeReader()
	if parent.depth == MaxDepth {
		// By chance a mark stands anywhere; that much of a stream does not.
		if n, _ := io.CopyN(io.Discard, r, 1024); n == 1024 {
			parent.found.skip(where + ": nested too deep")
		}
		return
	}
	child := newScanner(parent.m, parent.found, where, parent.depth+1)
	defer child.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if !parent.found.inflate(n) {
				parent.found.skip(where + ": the streams of this artefact hold more than 64 GiB")
				return
			}
			_, _ = child.Write(buf[:n]) // never fails
		}
		if err != nil {
			if errors.Is(err, zstd.ErrWindowSizeExceeded) {
				parent.found.skip(where + ": it wants too much memory")
			}
			return
		}
	}
}

func decompressor(kind string, in io.Reader) (io.Reader, func(), error) {
	if kind == marks[gzipMark] {
		r, err := gzip.NewReader(bufio.NewReader(in))
		if err != nil {
			return nil, nil, err
		}
		r.Multistream(false) // the next member has a mark of its own
		return r, func() {}, nil
	}
	r, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, nil, err
	}
	return r, r.Close, nil
}
