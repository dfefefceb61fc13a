// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package registrytest is an OCI registry in memory for tests. It answers what a test wants, also what no honest
// registry would.
package registrytest

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Credentials that a registry with authentication wants, and the token that it gives for them.
const (
	User     = "user"
	Password = "pass:word"
	token    = "a-token"
)

// Repository is where AddImage puts images.
const Repository = "test/image"

// Registry is a registry behind TLS.
type Registry struct {
	*httptest.Server

	// Auth is "", "basic" or "bearer". It is set before the first request.
	Auth string
	// Hook answers a request instead of the registry if it returns true. It is set before the first request.
	Hook func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	blobs     map[string][]byte
	manifests map[string]manifest
	requests  []string
	sent      atomic.Int64
}

type manifest struct {
	mediaType string
	data      []byte
}

// New starts a registry, which ends with the test.
func New(t testing.TB) *Registry {
	t.Helper()
	return start(t, nil, false)
}

// NewHTTP2 is New with HTTP/2.
func NewHTTP2(t testing.TB) *Registry {
	t.Helper()
	return start(t, nil, true)
}

// NewIPv6 is New with an IPv6 address. The test is skipped where there is none, unless all tests have to run.
func NewIPv6(t testing.TB) *Registry {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp6", "[::1]:0")
	if err != nil && os.Getenv("REQUIRE_QEMU") == "1" {
		t.Fatalf("this machine has no IPv6: %v", err)
	}
	if err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	}
	return start(t, l, false)
}

func start(t testing.TB, l net.Listener, http2 bool) *Registry {
	t.Helper()
	r := &Registry{blobs: make(map[string][]byte), manifests: make(map[string]manifest)}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	if l != nil {
		_ = r.Listener.Close() // nobody listens yet
		r.Listener = l
	}
	r.EnableHTTP2 = http2
	r.StartTLS()
	t.Cleanup(r.Close)
	return r
}

// Host returns host:port.
func (r *Registry) Host() string { return r.Listener.Addr().String() }

// Reference returns a reference to a tag, or to a digest if tag starts with "@".
func (r *Registry) Reference(tag string) string {
	if strings.HasPrefix(tag, "@") {
		return r.Host() + "/" + Repository + tag
	}
	return r.Host() + "/" + Repository + ":" + tag
}

// CA returns a pool with the registry's certificate.
func (r *Registry) CA() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(r.Certificate())
	return pool
}

// AuthJSON returns an auth.json with the right credentials.
func (r *Registry) AuthJSON() []byte {
	auth := base64.StdEncoding.EncodeToString([]byte(User + ":" + Password))
	return []byte(fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.Host(), auth))
}

// AddBlob stores a blob and returns its descriptor.
func (r *Registry) AddBlob(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	r.SetBlob(d, data)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// SetBlob stores a blob under any digest.
func (r *Registry) SetBlob(d digest.Digest, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[d.String()] = data
}

// AddManifest stores a manifest or index under its digest and, unless it is empty, a tag.
func (r *Registry) AddManifest(t testing.TB, tag, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manifests[d.String()] = manifest{mediaType, data}
	if tag != "" {
		r.manifests[tag] = manifest{mediaType, data}
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// Manifest returns the bytes of a manifest by its tag or digest, nil if there is none.
func (r *Registry) Manifest(name string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.manifests[name].data
}

// AddImage stores an image for linux/arch of layers, whose blobs are there already, and returns its manifest.
func (r *Registry) AddImage(t testing.TB, tag, arch string, layers []ocispec.Descriptor, diffIDs []digest.Digest) ocispec.Descriptor {
	t.Helper()
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{Architecture: arch, OS: "linux"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.AddManifest(t, tag, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    r.AddBlob(ocispec.MediaTypeImageConfig, config),
		Layers:    layers,
	})
}

// Requests returns how many requests have come whose "METHOD path" has a substring.
func (r *Registry) Requests(substring string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.requests {
		if strings.Contains(s, substring) {
			n++
		}
	}
	return n
}

// Sent returns how many bytes of bodies were written to connections. What is still in the buffers of sockets counts.
func (r *Registry) Sent() int64 { return r.sent.Load() }

// counter counts what is written.
type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// Unwrap is for http.ResponseController.
func (c counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	w = counter{w, &r.sent}
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	r.mu.Unlock()
	if r.Hook != nil && r.Hook(w, req) {
		return
	}
	if !r.authorize(w, req) {
		return
	}
	prefix := "/v2/" + Repository
	if name, ok := strings.CutPrefix(req.URL.Path, prefix+"/manifests/"); ok {
		r.serveManifest(w, req, name)
		return
	}
	name, ok := strings.CutPrefix(req.URL.Path, prefix+"/blobs/")
	r.mu.Lock()
	data, found := r.blobs[name]
	r.mu.Unlock()
	if !ok || !found {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	_, _ = w.Write(data)
}

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, name string) {
	r.mu.Lock()
	m, found := r.manifests[name]
	r.mu.Unlock()
	if !found {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", m.mediaType)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.data).String())
	w.Header().Set("Content-Length", strconv.Itoa(len(m.data)))
	if req.Method != http.MethodHead {
		_, _ = w.Write(m.data)
	}
}

// authorize answers what is not authorized, and requests for tokens.
func (r *Registry) authorize(w http.ResponseWriter, req *http.Request) bool {
	user, password, basic := req.BasicAuth()
	right := basic && user == User && password == Password
	challenge := `Basic realm="test"`
	switch {
	case r.Auth == "", r.Auth == "basic" && right, r.Auth == "bearer" && req.Header.Get("Authorization") == "Bearer "+token:
		return true
	case r.Auth == "bearer" && req.URL.Path == "/token" && right:
		_, _ = fmt.Fprintf(w, `{"token":%q}`, token)
		return false
	case r.Auth == "bearer":
		challenge = fmt.Sprintf(`Bearer realm="%s/token",service="test"`, r.URL)
	}
	w.Header().Set("WWW-Authenticate", challenge)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}
