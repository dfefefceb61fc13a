// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package unpack

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/iotest"
)

// pattern returns n bytes that do not repeat.
func pattern(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(data) // never fails
	return data
}

// What is read ahead is what is there, in any pieces, and an error comes after the bytes before it.
func TestReadAhead(t *testing.T) {
	failed := errors.New("connection dropped")
	for _, size := range []int{0, 1, 63, 64, 65, 64 * aheadBuffers, 64*aheadBuffers + 1, 10000} {
		want := pattern(size)
		for name, r := range map[string]io.Reader{
			"whole": bytes.NewReader(want), "one byte each": iotest.OneByteReader(bytes.NewReader(want)),
			"end with the data": iotest.DataErrReader(bytes.NewReader(want)),
		} {
			for _, end := range []error{io.EOF, failed} {
				if end != io.EOF { //nolint:errorlint // the value itself
					r = io.MultiReader(bytes.NewReader(want), iotest.ErrReader(end))
				}
				a := readAhead(r, 64)
				got := new(bytes.Buffer)
				n, err := 0, error(nil)
				for buf := make([]byte, 50); err == nil; got.Write(buf[:n]) {
					n, err = a.Read(buf)
				}
				if !bytes.Equal(got.Bytes(), want) || !errors.Is(err, end) {
					t.Errorf("%s, %d bytes: got %d, %v", name, size, got.Len(), err)
				}
				if _, again := a.Read(make([]byte, 1)); !errors.Is(again, end) {
					t.Errorf("%s, %d bytes: then %v", name, size, again)
				}
				a.Close()
			}
		}
	}
}

// counter counts what is read of it, and has no end.
type counter struct{ n atomic.Int64 }

func (c *counter) Read(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// Who does not read holds the whole pipeline up: memory stays bounded. After Close nothing is read any more.
func TestReadAheadIsBounded(t *testing.T) {
	c := new(counter)
	a := readAhead(c, 64)
	for range 100 { // as many bytes again are read for those that are taken
		if _, err := io.ReadFull(a, make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
		if n := c.n.Load(); n > 64*(aheadBuffers+101) {
			t.Fatalf("%d bytes were read ahead", n)
		}
	}
	a.Close()
	n := c.n.Load()
	if _, err := io.Copy(io.Discard, a); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("after Close: %v", err)
	}
	if c.n.Load() != n {
		t.Error("there was a Read after Close")
	}
}

// panics is what a decoder with a fault is like.
type panics struct{}

func (panics) Read([]byte) (int, error) { panic("index out of range") }

// A panic in the pipeline is an error for who unpacks; in a goroutine of its own it would end the agent.
func TestReadAheadPanic(t *testing.T) {
	for _, c := range []Compression{None, Gzip, Zstd} {
		r, err := Decompress(c, panics{})
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if !errors.Is(err, errPanic) {
			t.Errorf("compression %d: %v", c, err)
		}
	}
}

// Closing a stream in its middle ends its goroutines, see TestMain, wherever they are.
func TestCloseEarly(t *testing.T) {
	data := pattern(4 << 20)
	for _, c := range []Compression{None, Gzip, Zstd} {
		packed := compress(t, c, data)
		for _, n := range []int{0, 1, 1000, 1 << 20, len(data)} {
			r, err := Decompress(c, bytes.NewReader(packed))
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, n)
			if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[:n]) {
				t.Errorf("compression %d, %d bytes: %v", c, n, err)
			}
			if err := r.Close(); err != nil {
				t.Errorf("compression %d, %d bytes: close: %v", c, n, err)
			}
		}
	}
}
