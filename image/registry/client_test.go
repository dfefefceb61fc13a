// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t *testing.T, s string) Reference {
	t.Helper()
	ref, err := ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func newClient(t *testing.T, ca *x509.CertPool, auth []byte) *Client {
	t.Helper()
	a, err := ParseAuth(auth)
	if err != nil {
		t.Fatal(err)
	}
	c := New(Config{CA: ca, Auth: a, UserAgent: "test", Retry: Retry{Base: time.Millisecond, Max: 2 * time.Millisecond}})
	t.Cleanup(c.Close)
	return c
}

// addImage stores a small image and returns its manifest.
func addImage(t *testing.T, r *registrytest.Registry, tag, arch string) (manifest, layer ocispec.Descriptor) {
	t.Helper()
	layer = r.AddBlob(ocispec.MediaTypeImageLayer, []byte("a layer for "+arch))
	return r.AddImage(t, tag, arch, []ocispec.Descriptor{layer}, []digest.Digest{layer.Digest}), layer
}

func TestPull(t *testing.T) {
	for _, auth := range []string{"", "basic", "bearer"} {
		t.Run("auth "+auth, func(t *testing.T) {
			r := registrytest.New(t)
			r.Auth = auth
			want, layer := addImage(t, r, "v1", "s390x")
			c := newClient(t, r.CA(), r.AuthJSON())
			ref := parse(t, r.Reference("v1"))
			desc, err := c.Resolve(t.Context(), ref)
			if err != nil || desc.Digest != want.Digest {
				t.Fatalf("Resolve: %v, %v; want %s", desc.Digest, err, want.Digest)
			}
			img, err := c.Image(t.Context(), ref, desc.Digest, "s390x")
			if err != nil || len(img.Layers) != 1 || img.Digest != want.Digest || img.Layers[0].DiffID != layer.Digest {
				t.Fatalf("Image: %+v, %v", img, err)
			}
			rc, err := c.Blob(t.Context(), ref, img.Layers[0].Descriptor)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(rc)
			if err != nil || string(data) != "a layer for s390x" {
				t.Errorf("Blob: %q, %v", data, err)
			}
			if err := rc.Close(); err != nil {
				t.Error(err)
			}
			if _, err := c.Image(t.Context(), ref, desc.Digest, "amd64"); err == nil || !strings.Contains(err.Error(), "this guest is linux/amd64") {
				t.Errorf("an image of another architecture: %v", err)
			}
		})
	}
}

func TestPullByDigest(t *testing.T) {
	r := registrytest.New(t)
	want, _ := addImage(t, r, "v1", "s390x")
	addImage(t, r, "v2", "amd64")
	c := newClient(t, r.CA(), nil)
	// The tag beside a digest says nothing: v2 is another image.
	ref := parse(t, r.Reference("v2")+"@"+want.Digest.String())
	desc, err := c.Resolve(t.Context(), ref)
	if err != nil || desc.Digest != want.Digest {
		t.Fatalf("Resolve: %v, %v", desc.Digest, err)
	}
	if n := r.Requests(""); n != 0 {
		t.Errorf("resolving a digest took %d requests", n)
	}
	if _, err := c.Image(t.Context(), ref, desc.Digest, "s390x"); err != nil {
		t.Error(err)
	}
}

func TestIndex(t *testing.T) {
	r := registrytest.New(t)
	a, _ := addImage(t, r, "", "amd64")
	s, _ := addImage(t, r, "", "s390x")
	a.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	s.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	for name, mediaType := range map[string]string{"oci": ocispec.MediaTypeImageIndex, "docker": mediaTypeDockerList} {
		index := r.AddManifest(t, name, mediaType, map[string]any{
			"schemaVersion": 2, "mediaType": mediaType, "manifests": []ocispec.Descriptor{a, s},
		})
		c := newClient(t, r.CA(), nil)
		ref := parse(t, r.Reference(name))
		desc, err := c.Resolve(t.Context(), ref)
		if err != nil || desc.Digest != index.Digest {
			t.Fatalf("Resolve: %v, %v", desc.Digest, err)
		}
		for arch, want := range map[string]digest.Digest{"amd64": a.Digest, "s390x": s.Digest} {
			img, err := c.Image(t.Context(), ref, desc.Digest, arch)
			if err != nil || img.Manifest != want || img.Digest != index.Digest {
				t.Errorf("%s, %s: %+v, %v", name, arch, img, err)
			}
		}
		if _, err := c.Image(t.Context(), ref, desc.Digest, "riscv64"); err == nil || !strings.Contains(err.Error(), "no image for linux/riscv64") {
			t.Errorf("%s: an architecture that is not there: %v", name, err)
		}
	}
}

func TestErrors(t *testing.T) {
	r := registrytest.New(t)
	r.Auth = "basic"
	addImage(t, r, "v1", "s390x")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	other := httptest.NewUnstartedServer(http.NotFoundHandler())
	wrong := strings.Replace(string(r.AuthJSON()), "auth\":\"", "auth\":\"YQ==\",\"x\":\"", 1)
	if _, err := ParseAuth([]byte(wrong)); err == nil {
		t.Fatal("the wrong credentials are not meant to parse")
	}
	other.Close()
	for _, tt := range []struct {
		name, ref string
		ca        *x509.CertPool
		auth      string
		is        error
		want      string
	}{
		{"unknown authority", r.Reference("v1"), x509.NewCertPool(), string(r.AuthJSON()), ErrUntrusted, "no CA that the guest trusts has signed it"},
		{"no authority at all", r.Reference("v1"), nil, string(r.AuthJSON()), ErrUntrusted, "no CA that the guest trusts has signed it"},
		{"another host", strings.Replace(r.Reference("v1"), "127.0.0.1", "localhost", 1), r.CA(), "", ErrUntrusted, "for another host"},
		{"no credentials", r.Reference("v1"), r.CA(), "", ErrUnauthorized, "check the credentials that the guest has for 127.0.0.1"},
		{"wrong credentials", r.Reference("v1"), r.CA(), `{"auths":{"` + r.Host() + `":{"auth":"YTpi"}}}`, ErrUnauthorized, "check the credentials that the guest has"},
		{"no such tag", r.Reference("v9"), r.CA(), string(r.AuthJSON()), ErrNotFound, "not found"},
		{"nobody there", nobody + "/a/b:c", r.CA(), "", nil, "no registry listens at " + nobody},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newClient(t, tt.ca, []byte(tt.auth))
			_, err := c.Resolve(t.Context(), parse(t, tt.ref))
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("Resolve: %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), registrytest.Password) {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
}

func TestHostileAnswers(t *testing.T) {
	var plainHits int
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { plainHits++ }))
	defer plain.Close()
	endless := func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodHead {
			w.WriteHeader(http.StatusOK) // neither digest nor size: the client has to get the manifest
			return true
		}
		for chunk := make([]byte, 1<<16); ; {
			if _, err := w.Write(chunk); err != nil {
				return true
			}
		}
	}
	redirect := func(to string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, req *http.Request) bool {
			http.Redirect(w, req, to, http.StatusTemporaryRedirect)
			return true
		}
	}
	on := func(part string, f func(http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, part) {
				return false
			}
			f(w)
			return true
		}
	}
	for _, tt := range []struct {
		name string
		hook func(http.ResponseWriter, *http.Request) bool
		want string
	}{
		{"redirect to http", redirect(plain.URL), "only https is allowed"},
		{"redirect to file", redirect("file:///etc/passwd"), "only https is allowed"},
		{"redirect loop", func(w http.ResponseWriter, req *http.Request) bool {
			http.Redirect(w, req, req.URL.Path, http.StatusTemporaryRedirect)
			return true
		}, "more than 5 redirects"},
		{"token from http", on("/", func(w http.ResponseWriter) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+plain.URL+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
		}), "only https is allowed"},
		{"endless manifest", endless, "larger than it may be"},
		{"large manifest by header", on("/manifests/", func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			w.Header().Set("Content-Length", "5000000")
		}), ""},
		{"another manifest", on("/manifests/", func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			_, _ = w.Write([]byte("y"))
		}), "has digest"},
		{"digest of an unknown kind", on("/manifests/", func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", "md5:00")
			w.Header().Set("Content-Length", "1")
			_, _ = w.Write([]byte("y"))
		}), "digest"},
		{"compressed by the server", on("/manifests/", func(w http.ResponseWriter) {
			w.Header().Set("Content-Encoding", "gzip")
		}), "content encoding"},
		{"server error", on("/", func(w http.ResponseWriter) { w.WriteHeader(http.StatusTeapot) }), "418"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := registrytest.New(t)
			addImage(t, r, "v1", "s390x")
			r.Hook = tt.hook
			c := newClient(t, r.CA(), r.AuthJSON())
			ref := parse(t, r.Reference("v1"))
			desc, err := c.Resolve(t.Context(), ref)
			if err == nil {
				_, err = c.Image(t.Context(), ref, desc.Digest, "s390x")
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if plainHits != 0 {
		t.Errorf("%d requests went out without TLS", plainHits)
	}
}

func TestHostileBlobs(t *testing.T) {
	r := registrytest.New(t)
	_, layer := addImage(t, r, "v1", "s390x")
	ref := parse(t, r.Reference("v1"))
	data := []byte("a layer for s390x")
	flipped := append([]byte(nil), data...)
	flipped[3] ^= 1
	for name, served := range map[string][]byte{
		"bit flip": flipped, "truncated": data[:len(data)-1], "longer": append(append([]byte(nil), data...), 0), "empty": {},
		"much longer": make([]byte, MaxManifestSize*2),
	} {
		t.Run(name, func(t *testing.T) {
			r.SetBlob(layer.Digest, served)
			c := newClient(t, r.CA(), nil)
			rc, err := c.Blob(t.Context(), ref, layer)
			if err == nil {
				defer rc.Close()
				_, err = io.ReadAll(rc)
			}
			if !errors.Is(err, ErrDigest) {
				t.Errorf("error %v, want ErrDigest", err)
			}
			if err == nil {
				return
			}
			if _, again := rc.Read(make([]byte, 1)); again == nil || errors.Is(again, io.EOF) {
				t.Errorf("reading on after the error: %v", again)
			}
		})
	}
}

// The URLs of a descriptor would be fetched from any host, without the pool that the guest trusts.
func TestDescriptorURLsAreNotFollowed(t *testing.T) {
	hits := 0
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits++
		_, _ = w.Write([]byte("a layer for s390x"))
	}))
	defer elsewhere.Close()
	r := registrytest.New(t)
	_, layer := addImage(t, r, "v1", "s390x")
	layer.URLs = []string{elsewhere.URL + "/blob"}
	c := newClient(t, r.CA(), nil)
	rc, err := c.Blob(t.Context(), parse(t, r.Reference("v1")), layer)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, err := io.ReadAll(rc); err != nil {
		t.Error(err)
	}
	if hits != 0 {
		t.Errorf("%d requests went to a URL from the manifest", hits)
	}
}
