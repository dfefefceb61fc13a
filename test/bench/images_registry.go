// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/test/story"
)

// fileRegistry serves layouts as a registry does, over TLS, straight from their files: it costs as little as one can.
// It counts what it sends.
type fileRegistry struct {
	pki     story.PKI
	host    string
	latency atomic.Int64 // nanoseconds before each answer
	server  *http.Server

	mu     sync.Mutex
	images map[string]*plainImage
	sent   map[digest.Digest]int64
}

func startFileRegistry(ctx context.Context, dir string) (*fileRegistry, error) {
	pki, err := story.NewPKI(dir)
	if err != nil {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(story.LoopbackHost, "0"))
	if err != nil {
		return nil, err
	}
	r := &fileRegistry{pki: pki, host: l.Addr().String(), images: make(map[string]*plainImage), sent: make(map[digest.Digest]int64)}
	r.server = &http.Server{Handler: r} //nolint:gosec // G112: only the bench connects
	go func() { _ = r.server.ServeTLS(l, pki.Cert, pki.Key) }()
	return r, nil
}

// add offers an image by a name and returns its reference.
func (r *fileRegistry) add(name string, img *plainImage) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[name] = img
	return r.host + "/bench/" + name + ":1"
}

// drop withdraws an image.
func (r *fileRegistry) drop(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.images, name)
}

// bytes returns what was sent of a blob so far.
func (r *fileRegistry) bytes(d digest.Digest) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent[d]
}

// ServeHTTP implements http.Handler.
func (r *fileRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	time.Sleep(time.Duration(r.latency.Load()))
	if req.URL.Path == "/v2/" {
		return
	}
	path := strings.Split(strings.TrimPrefix(req.URL.Path, "/v2/bench/"), "/")
	r.mu.Lock()
	img := r.images[path[0]]
	r.mu.Unlock()
	if img == nil || len(path) != 3 {
		http.NotFound(w, req)
		return
	}
	d := digest.Digest(path[2])
	if path[1] == "manifests" {
		d = img.desc.Digest
		w.Header().Set("Content-Type", img.desc.MediaType)
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	if d.Validate() != nil {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	counted := &countingWriter{ResponseWriter: w}
	http.ServeFile(counted, req, blobFile(img.layout, d))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent[d] += counted.n
}

// close ends the registry; after it nothing is counted any more.
func (r *fileRegistry) close() error {
	err := r.server.Close()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// countingWriter counts the bytes of a body.
type countingWriter struct {
	http.ResponseWriter
	n int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}
