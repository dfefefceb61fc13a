// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
)

// layerSize is the size of the benchmark's layer in bytes, before compression.
const layerSize = 200 << 20

// benchLayer is a tar of files whose content compresses by about a half.
func benchLayer(b *testing.B) []byte {
	b.Helper()
	var buf bytes.Buffer
	buf.Grow(layerSize + 4<<20)
	w := tar.NewWriter(&buf)
	rnd := rand.NewChaCha8([32]byte{1})
	content := make([]byte, 256<<10)
	for i := range layerSize / len(content) {
		_, _ = rnd.Read(content[:len(content)/2])
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/f%d", i%50, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(w, bytes.NewReader(content)); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

// peak returns a func that says by how many bytes the heap in use has grown at most. It looks every few milliseconds.
func peak() func() uint64 {
	runtime.GC()
	var start, now runtime.MemStats
	runtime.ReadMemStats(&start)
	var most atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&now)
				if now.HeapInuse > start.HeapInuse {
					most.Store(max(most.Load(), now.HeapInuse-start.HeapInuse))
				}
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-done
		return most.Load()
	}
}

// onDisk moves a layer's blob out of this process's memory: garbage is collected when as much again has come as is in use,
// so a large heap would hide what a pull takes.
func onDisk(b *testing.B, r *registrytest.Registry, l *built) {
	b.Helper()
	file := filepath.Join(b.TempDir(), "blob")
	if err := os.WriteFile(file, l.blob, 0o600); err != nil {
		b.Fatal(err)
	}
	l.blob = nil
	r.SetBlob(l.desc.Digest, nil)
	r.Hook = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, l.desc.Digest.String()) {
			return false
		}
		http.ServeFile(w, req, file)
		return true
	}
}

// BenchmarkPull measures one layer on its way from a TLS registry in this process to files. What the registry allocates
// while it serves counts, too.
func BenchmarkPull(b *testing.B) {
	key := bytes.Repeat([]byte{7}, 32)
	for _, kind := range []string{"none", "gzip", "zstd"} {
		for name, k := range map[string][]byte{"plain": nil, "encrypted": key} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				r := registrytest.New(b)
				l := build(b, r, kind, benchLayer(b), k)
				addImage(b, r, "v1", l)
				onDisk(b, r, &l)
				b.SetBytes(layerSize)
				for b.Loop() {
					m := new(mounts)
					s, err := New(Config{Root: filepath.Join(b.TempDir(), "images"), CA: r.CA(), Arch: arch, Mounts: m.calls(), Policy: accept(b), Keys: keyring(key)})
					if err != nil {
						b.Fatal(err)
					}
					heap := peak()
					err = mount(b.Context(), s, "c1", r.Reference("v1"), "/c1")
					b.ReportMetric(float64(heap())/(1<<20), "peak-MiB")
					s.Close()
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkManyImages pulls 32 small images from a registry that takes 50 ms for an answer, one after the other and all
// at once.
func BenchmarkManyImages(b *testing.B) {
	const images = 32
	r := registrytest.New(b)
	r.Hook = func(http.ResponseWriter, *http.Request) bool {
		time.Sleep(50 * time.Millisecond)
		return false
	}
	for i := range images {
		addImage(b, r, fmt.Sprint("v", i), build(b, r, "gzip", tarball(b, map[string]string{"f": fmt.Sprint(i)}), nil))
	}
	for name, parallel := range map[string]int{"one after the other": 1, "together": images} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				m := new(mounts)
				s, err := New(Config{Root: filepath.Join(b.TempDir(), "images"), CA: r.CA(), Arch: arch, Mounts: m.calls(), Policy: accept(b)})
				if err != nil {
					b.Fatal(err)
				}
				var group errgroup.Group
				group.SetLimit(parallel)
				for i := range images {
					group.Go(func() error {
						id := fmt.Sprint("c", i)
						return mount(b.Context(), s, id, r.Reference(fmt.Sprint("v", i)), "/"+id)
					})
				}
				err = group.Wait()
				s.Close()
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
