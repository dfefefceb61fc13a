// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package unpack

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression is how a layer's tar is compressed.
type Compression int

// The compressions of OCI layers.
const (
	None Compression = iota
	Gzip
	Zstd
)

// zstdWindow bounds the memory that a zstd frame can ask for, in bytes. The format recommends to support 8 MiB; the
// best levels of common encoders use up to 32 MiB.
const zstdWindow = 32 << 20

// bufferSize is that of the reads from a compressed stream, in bytes.
const bufferSize = 64 << 10

// FromMediaType returns the compression of a layer of a media type. OCI's and Docker's types are known, also those of
// layers that must not be distributed; encrypted types are not: take the plain type.
func FromMediaType(mediaType string) (Compression, error) {
	switch mediaType {
	case "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return Gzip, nil
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar":
		return None, nil
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return Zstd, nil
	}
	rest, ok := strings.CutPrefix(mediaType, "application/vnd.oci.image.layer.")
	if ok {
		switch strings.TrimPrefix(rest, "nondistributable.") {
		case "v1.tar":
			return None, nil
		case "v1.tar+gzip":
			return Gzip, nil
		case "v1.tar+zstd":
			return Zstd, nil
		}
	}
	return None, fmt.Errorf("layer of media type %.100q is not a tar, tar+gzip or tar+zstd layer", mediaType)
}

// Decompress returns the tar stream of a compressed one. It reads r, decompresses, and is read in three goroutines, with
// a bounded number of bytes between them. Closing it waits for a Read of r that goes on, and does not close r; until then
// nobody else may read r. Every member or frame up to r's end belongs to the stream, anything else there is an error.
func Decompress(c Compression, r io.Reader) (io.ReadCloser, error) {
	if c != None && c != Gzip && c != Zstd {
		return nil, fmt.Errorf("compression %d is not known", c)
	}
	compressed := readAhead(r, compressedAhead)
	s := &stages{compressed: compressed}
	if c == None {
		return s, nil
	}
	var err error
	if s.decoder, err = decoder(c, compressed); err != nil {
		compressed.Close()
		return nil, err
	}
	s.plain = readAhead(s.decoder, plainAhead)
	return s, nil
}

func decoder(c Compression, r *ahead) (io.ReadCloser, error) {
	if c == Gzip {
		zr, err := gzip.NewReader(bufio.NewReaderSize(r, bufferSize))
		if err != nil {
			return nil, fmt.Errorf("open gzip stream: %w", err)
		}
		return zr, nil
	}
	// One decoder at a time and no read-ahead of its own: memory stays bounded by the window, and no goroutine outlives
	// Close.
	zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(zstdWindow))
	if err != nil {
		return nil, fmt.Errorf("open zstd stream: %w", err)
	}
	return zr.IOReadCloser(), nil
}

// stages are those of a stream; without compression there is only the first.
type stages struct {
	compressed *ahead
	decoder    io.ReadCloser
	plain      *ahead
}

func (s *stages) Read(p []byte) (int, error) {
	if s.plain == nil {
		return s.compressed.Read(p)
	}
	return s.plain.Read(p)
}

// Close stops the stages: the first one first, which may be what the second waits for.
func (s *stages) Close() error {
	s.compressed.Close()
	if s.plain == nil {
		return nil
	}
	s.plain.Close()
	_ = s.decoder.Close() // its error is the one of the last Read
	return nil
}
