// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package unpack

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func compress(t testing.TB, c Compression, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch c {
	case Gzip:
		w = gzip.NewWriter(&buf)
	case Zstd:
		zw, err := zstd.NewWriter(&buf, zstd.WithWindowSize(zstdWindow))
		if err != nil {
			t.Fatal(err)
		}
		w = zw
	default:
		return data
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestDecompress(t *testing.T) {
	want := bytes.Repeat([]byte("some text that compresses; "), 10000)
	for name, c := range map[string]Compression{"none": None, "gzip": Gzip, "zstd": Zstd} {
		t.Run(name, func(t *testing.T) {
			data := compress(t, c, want)
			twice := append(bytes.Clone(data), data...) // members and frames may follow each other
			r, err := Decompress(c, bytes.NewReader(twice))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, append(bytes.Clone(want), want...)) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if c == None {
				return
			}
			for kind, bad := range map[string][]byte{
				"cut": data[:len(data)-3], "garbage after": append(bytes.Clone(data), "garbage"...), "garbage": []byte("no such format"), "empty": nil,
			} {
				if kind == "empty" && c == Zstd {
					continue // no frames are an empty stream; the diff_id decides
				}
				r, err := Decompress(c, bytes.NewReader(bad))
				if err == nil {
					_, err = io.Copy(io.Discard, r)
					r.Close()
				}
				if err == nil {
					t.Errorf("%s: no error", kind)
				}
			}
		})
	}
}

func TestZstdWindowIsBounded(t *testing.T) {
	// A frame header that asks for a window of 2 GiB: magic, descriptor without single segment, window descriptor.
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00}
	r, err := Decompress(Zstd, bytes.NewReader(frame))
	if err == nil {
		_, err = io.ReadAll(r)
		r.Close()
	}
	if !errors.Is(err, zstd.ErrWindowSizeExceeded) {
		t.Errorf("error %v, want ErrWindowSizeExceeded", err)
	}
}

func TestFromMediaType(t *testing.T) {
	for in, want := range map[string]Compression{
		"application/vnd.oci.image.layer.v1.tar": None, "application/vnd.oci.image.layer.v1.tar+gzip": Gzip,
		"application/vnd.oci.image.layer.v1.tar+zstd": Zstd, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": Gzip,
		"application/vnd.oci.image.layer.nondistributable.v1.tar": None, "application/vnd.docker.image.rootfs.diff.tar.gzip": Gzip,
		"application/vnd.docker.image.rootfs.diff.tar": None, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": Gzip,
	} {
		if got, err := FromMediaType(in); err != nil || got != want {
			t.Errorf("FromMediaType(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "application/vnd.oci.image.layer.v1.tar+bzip2", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/octet-stream"} {
		if got, err := FromMediaType(in); err == nil {
			t.Errorf("FromMediaType(%q) = %v", in, got)
		}
	}
}
