// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/image/registry"
)

// hostileBodies are bodies that are not what was asked for.
func hostileBodies() []row {
	// body answers requests for the layer.
	body := func(times int, f func(w http.ResponseWriter, req *http.Request, l built)) func(*testing.T, *hostile) bool {
		return func(_ *testing.T, h *hostile) bool {
			l := h.layers[0]
			h.on(l.desc.Digest.String(), times, func(w http.ResponseWriter, req *http.Request) { f(w, req, l) })
			return false
		}
	}
	large := func(kind string, f func(h *hostile, l built)) func(*testing.T, *hostile) bool {
		return func(t *testing.T, h *hostile) bool {
			h.layers = []built{build(t, h.Registry, kind, tarball(t, map[string]string{"f": content, "large": random(1 << 20)}), nil)}
			f(h, h.layers[0])
			return false
		}
	}
	part := func(offset int) func(h *hostile, l built) {
		return func(h *hostile, l built) {
			h.on(l.desc.Digest.String(), 0, func(w http.ResponseWriter, req *http.Request) {
				from, ranged := 0, req.Header.Get("Range") != ""
				if ranged {
					_, _ = fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from)
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from+offset, len(l.blob)-1, len(l.blob)))
					w.Header().Set("Content-Length", strconv.Itoa(len(l.blob)-from))
					w.WriteHeader(http.StatusPartialContent)
					_, _ = w.Write(l.blob[from:])
					return
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(l.blob)))
				_, _ = w.Write(l.blob[:len(l.blob)/2])
				panic(http.ErrAbortHandler)
			})
		}
	}
	return []row{
		{name: "Content-Length too large", do: body(0, func(w http.ResponseWriter, _ *http.Request, l built) {
			raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", 10*len(l.blob), l.blob), "")(w, nil)
		}), want: ""}, // all of the layer is there, and more cannot be
		{name: "Content-Length too small", do: body(0, func(w http.ResponseWriter, _ *http.Request, l built) {
			raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(l.blob)/2, l.blob), "")(w, nil)
		}), want: "its manifest says", is: registry.ErrDigest},
		{name: "Content-Length negative", do: body(0, func(w http.ResponseWriter, _ *http.Request, _ built) {
			raw("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "")(w, nil)
		}), want: "Content-Length"},
		{name: "two Content-Lengths", do: body(0, func(w http.ResponseWriter, _ *http.Request, _ built) {
			raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "")(w, nil)
		}), want: "Content-Length"},
		{name: "chunks with trailers", do: body(0, func(w http.ResponseWriter, _ *http.Request, l built) {
			w.Header().Set("Trailer", "Docker-Content-Digest")
			_, _ = w.Write(l.blob[:10])
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(l.blob[10:])
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
		}), want: ""},
		{name: "trailers without end", do: body(0, func(w http.ResponseWriter, _ *http.Request, l built) {
			raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n%x\r\n%s\r\n0\r\n", len(l.blob), l.blob), "X: y\r\n")(w, nil)
		}), want: ""}, // nobody reads them
		{name: "compressed on the way", do: body(0, func(w http.ResponseWriter, _ *http.Request, l built) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(l.blob)
		}), want: `content encoding "gzip" that was not asked for`},
		{name: "wrong Content-Type", do: body(0, func(w http.ResponseWriter, _ *http.Request, l built) {
			w.Header().Set("Content-Type", "text/html; charset=x")
			_, _ = w.Write(l.blob)
		}), want: ""},
		{name: "a range that nobody wanted", do: body(1, func(w http.ResponseWriter, _ *http.Request, l built) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 10-%d/%d", len(l.blob)-1, len(l.blob)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(l.blob[10:])
		}), want: "digest", is: registry.ErrDigest},
		{name: "the right range", do: large("gzip", part(0)), want: ""},
		{name: "another range", do: large("gzip", part(1)), want: "to a request for bytes from", is: registry.ErrDigest},
		{name: "without end", do: body(0, func(w http.ResponseWriter, _ *http.Request, l built) {
			_, _ = w.Write(l.blob)
			endless(w, make([]byte, 1<<16))
		}), want: "larger than the", is: registry.ErrDigest},
		{name: "one byte at a time", do: func(_ *testing.T, h *hostile) bool {
			h.retry.Stall = 100 * time.Millisecond
			l := h.layers[0]
			h.on(l.desc.Digest.String(), 0, func(w http.ResponseWriter, req *http.Request) {
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for i := 0; ; i++ {
					select {
					case <-tick.C:
					case <-req.Context().Done():
						return
					}
					if i < len(l.blob)-1 {
						_, _ = w.Write(l.blob[i : i+1])
						_ = http.NewResponseController(w).Flush()
					}
				}
			})
			return false
		}, want: "next to nothing", is: registry.ErrStalled},
		{name: "another layer of the right size", do: func(t *testing.T, h *hostile) bool {
			evil := build(t, h.Registry, "none", tarball(t, map[string]string{"f": strings.ToUpper(content)}), nil)
			h.layers = []built{build(t, h.Registry, "none", tarball(t, map[string]string{"f": content}), nil)}
			h.SetBlob(h.layers[0].desc.Digest, evil.blob)
			return false
		}, want: "has digest", is: registry.ErrDigest},
	}
}

// hostileHTTP2 are tricks of HTTP/2, with registries that drop in the middle.
func hostileHTTP2() []row {
	drop := func(times int, how func(w http.ResponseWriter, l built)) func(*testing.T, *hostile) bool {
		return func(t *testing.T, h *hostile) bool {
			h.layers = []built{build(t, h.Registry, "none", tarball(t, map[string]string{"f": content, "large": random(1 << 20)}), nil)}
			l := h.layers[0]
			h.on(l.desc.Digest.String(), times, func(w http.ResponseWriter, req *http.Request) {
				if req.ProtoMajor != 2 {
					t.Errorf("protocol %s", req.Proto)
				}
				how(w, l)
			})
			return false
		}
	}
	reset := func(w http.ResponseWriter, l built) {
		_, _ = w.Write(l.blob[:len(l.blob)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // RST_STREAM
	}
	return []row{
		{name: "reset in the middle", do: drop(1, reset), want: ""},
		{name: "reset at the start", do: drop(0, func(http.ResponseWriter, built) { panic(http.ErrAbortHandler) }), want: "gave up after 2 attempts"},
		{name: "GOAWAY in the middle", do: drop(1, func(w http.ResponseWriter, l built) {
			w.Header().Set("Connection", "close") // GOAWAY, and the stream goes on
			_, _ = w.Write(l.blob[:len(l.blob)/2])
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(l.blob[len(l.blob)/2:])
		}), want: ""},
		{name: "without end", do: drop(0, func(w http.ResponseWriter, l built) {
			_, _ = w.Write(l.blob)
			endless(w, make([]byte, 1<<16))
		}), want: "larger than the", is: registry.ErrDigest},
		{name: "an ordinary image", do: func(*testing.T, *hostile) bool { return false }, want: ""},
	}
}
