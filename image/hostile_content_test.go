// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/unpack"
)

// hostileCredentials are attempts to get at passwords, or to make the guest ask for ever.
func hostileCredentials() []row {
	// realm makes the registry say where its tokens are to be had.
	realm := func(to func(h *hostile) string) func(*testing.T, *hostile) bool {
		return func(_ *testing.T, h *hostile) bool {
			h.Hook = func(w http.ResponseWriter, req *http.Request) bool {
				if req.Header.Get("Authorization") != "" || req.URL.Path == "/token" {
					return false
				}
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="x",scope="repository:a/b:push,pull"`, to(h)))
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			h.Auth = "bearer"
			return false
		}
	}
	token := func(f func(h *hostile, w http.ResponseWriter, req *http.Request)) func(*testing.T, *hostile) bool {
		return func(_ *testing.T, h *hostile) bool {
			h.Auth = "bearer"
			h.Hook = func(w http.ResponseWriter, req *http.Request) bool {
				if req.URL.Path != "/token" {
					return false
				}
				f(h, w, req)
				return true
			}
			return false
		}
	}
	leads := func(path string) func(*testing.T, *hostile) bool {
		return func(_ *testing.T, h *hostile) bool {
			h.on(h.layers[0].desc.Digest.String(), 0, func(w http.ResponseWriter, req *http.Request) {
				http.Redirect(w, req, h.elsewhere.URL+path+strings.TrimPrefix(req.URL.Path, "/v2/"+registrytest.Repository), http.StatusTemporaryRedirect)
			})
			return false
		}
	}
	return []row{
		// What is elsewhere is as good as what is here, and gets no credentials.
		{name: "redirect to another host", do: leads("/v2/" + registrytest.Repository), want: ""},
		{name: "redirect to a host that asks for its own", do: leads("/private"), want: "check the credentials that the guest has", is: registry.ErrUnauthorized},
		{name: "401 for ever", do: always("/", 0, status(401, "WWW-Authenticate", `Basic realm="x"`)), want: "check the credentials that the guest has", is: registry.ErrUnauthorized},
		{name: "401 for ever with tokens", do: func(_ *testing.T, h *hostile) bool {
			h.Auth = "bearer"
			h.on(manifests, 0, func(w http.ResponseWriter, _ *http.Request) {
				status(401, "WWW-Authenticate", `Bearer realm="`+h.URL+`/token",service="x",error="insufficient_scope"`)(w, nil)
			})
			return false
		}, want: "check the credentials that the guest has", is: registry.ErrUnauthorized},
		{name: "401 without a challenge", do: always("/", 0, status(401)), want: "check the credentials that the guest has", is: registry.ErrUnauthorized},
		{name: "401 with an unknown challenge", do: always("/", 0, status(401, "WWW-Authenticate", `Negotiate x`)), want: "check the credentials that the guest has", is: registry.ErrUnauthorized},
		{name: "token of a file", do: realm(func(*hostile) string { return "file:///etc/passwd" }), want: "only https is allowed"},
		{name: "token over plain HTTP", do: realm(func(h *hostile) string { return "http://" + h.elsewhere.Host() + "/token" }), want: "only https is allowed"},
		{name: "token of no URL", do: realm(func(*hostile) string { return "https://[" }), want: "realm"},
		{name: "token of somebody else", do: realm(func(h *hostile) string { return h.elsewhere.URL + "/token" }), leak: true, want: "check the credentials that the guest has", is: registry.ErrUnauthorized},
		{name: "token request is redirected", do: token(func(h *hostile, w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, h.elsewhere.URL+"/token", http.StatusTemporaryRedirect)
		}), want: "redirects a request for a token"},
		{name: "token without end", do: token(func(_ *hostile, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"token":"`))
			endless(w, bytes.Repeat([]byte("x"), 1<<16))
		}), want: "larger than it may be"},
		{name: "token that is none", do: token(func(_ *hostile, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) }), want: "did not include a token"},
		{name: "token with a line end", do: token(func(_ *hostile, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"token":"a\r\nX: y","access_token":"a\r\nX: y"}`))
		}), want: "invalid header field value"},
		{name: "token of a service that is down", do: token(func(_ *hostile, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }), want: "gave up after 2 attempts"},
		{name: "scopes of others", do: realm(func(h *hostile) string { return h.URL + "/token" }), want: ""},
	}
}

// hostileManifests are manifests, indexes and configs that are not what they should be.
func hostileManifests() []row {
	// answer replaces the answers to requests for the tag.
	answer := func(part string, f func(w http.ResponseWriter, req *http.Request)) func(*testing.T, *hostile) bool {
		return always(part, 0, f)
	}
	manifest := func(change func(h *hostile, m map[string]any)) func(*testing.T, *hostile) bool {
		return func(t *testing.T, h *hostile) bool {
			h.manifest(t, "v1", change)
			return true
		}
	}
	config := func(change func(c map[string]any)) func(*testing.T, *hostile) bool {
		return func(t *testing.T, h *hostile) bool {
			c := map[string]any{"architecture": arch, "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []digest.Digest{h.layers[0].diffID}}}
			change(c)
			data, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			h.manifest(t, "v1", func(h *hostile, m map[string]any) { m["config"] = h.AddBlob(ocispec.MediaTypeImageConfig, data) })
			return true
		}
	}
	var requests int
	return []row{
		{name: "another one than the tag has", do: func(t *testing.T, h *hostile) bool {
			addImage(t, h.Registry, "v1", h.layers...)
			evil := addImage(t, h.Registry, "evil", build(t, h.Registry, "gzip", tarball(t, map[string]string{"f": "evil"}), nil))
			h.on(manifests, 0, func(w http.ResponseWriter, req *http.Request) {
				if req.Method == http.MethodHead {
					status(200, "Docker-Content-Digest", digest.FromString("x").String(), "Content-Length", "10")(w, req)
					return
				}
				_, _ = w.Write(h.Manifest(evil.Digest.String()))
			})
			return true
		}, want: "has digest", is: registry.ErrDigest},
		{name: "another one at each request", do: answer(manifests, func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodHead {
				return // no digest: it is asked for
			}
			requests++
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			_, _ = fmt.Fprintf(w, `{"schemaVersion":2,"manifests":[],"annotations":{"n":"%d"}}`, requests)
		}), want: "has digest", is: registry.ErrDigest},
		{name: "digest of no algorithm", do: answer(manifests, status(200, "Docker-Content-Digest", "md5:d41d8cd98f00b204e9800998ecf8427e", "Content-Length", "2")), want: "unsupported digest algorithm"},
		{name: "digest that is a path", do: answer(manifests, status(200, "Docker-Content-Digest", "sha256:../../../etc", "Content-Length", "2")), want: "not a valid digest"},
		{name: "without end", do: answer(manifests, func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet {
				endless(w, make([]byte, 1<<16))
			}
		}), want: "larger than it may be"},
		{name: "size of exabytes", do: answer(manifests, status(200, "Docker-Content-Digest", digest.FromString("x").String(), "Content-Length", "4611686018427387904")), want: "larger than it may be"},
		{name: "no JSON", do: func(t *testing.T, h *hostile) bool {
			h.AddManifest(t, "v1", ocispec.MediaTypeImageManifest, json.RawMessage(`"\u001b[2J"`))
			return true
		}, want: "parse"},
		{name: "deep JSON", do: func(_ *testing.T, h *hostile) bool {
			deep := []byte(strings.Repeat("[", 1<<20))
			h.on(manifests, 0, func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Docker-Content-Digest", digest.FromBytes(deep).String())
				w.Header().Set("Content-Length", strconv.Itoa(len(deep)))
				if req.Method == http.MethodGet {
					_, _ = w.Write(deep)
				}
			})
			return false
		}, want: "parse"},
		{name: "schema 1", do: manifest(func(_ *hostile, m map[string]any) { m["schemaVersion"], m["fsLayers"] = 1, []any{} }), want: "neither an OCI manifest nor a Docker schema 2 manifest"},
		{name: "an index that says it is a manifest", do: func(t *testing.T, h *hostile) bool {
			h.AddManifest(t, "v1", ocispec.MediaTypeImageManifest, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "manifests": []any{}})
			return true
		}, want: "not that of an index"},
		{name: "a manifest that says it is an index", do: manifest(func(_ *hostile, m map[string]any) { m["mediaType"] = ocispec.MediaTypeImageIndex }), want: "not that of an image manifest"},
		{name: "both manifest and index", do: manifest(func(_ *hostile, m map[string]any) { m["manifests"] = []any{} }), want: "neither an OCI index nor"},
		{name: "an index in an index", do: func(t *testing.T, h *hostile) bool {
			d := h.index(t, "inner", addImage(t, h.Registry, "", h.layers...))
			h.index(t, "v1", d)
			return true
		}, want: "no image for linux/s390x"},
		{name: "an index in an index called a manifest", do: func(t *testing.T, h *hostile) bool {
			d := h.index(t, "inner", addImage(t, h.Registry, "", h.layers...))
			d.MediaType = ocispec.MediaTypeImageManifest
			h.index(t, "v1", d)
			return true
		}, want: "neither an OCI manifest"},
		{name: "an image of another platform", do: func(t *testing.T, h *hostile) bool {
			h.index(t, "v1", h.AddImage(t, "", "amd64", []ocispec.Descriptor{h.layers[0].desc}, []digest.Digest{h.layers[0].diffID}))
			return true
		}, want: `image is for "linux"/"amd64", this guest is linux/s390x`},
		{name: "no image", do: manifest(func(_ *hostile, m map[string]any) {
			m["config"] = ocispec.Descriptor{MediaType: ocispec.MediaTypeEmptyJSON, Digest: digest.FromString("{}"), Size: 2}
		}), want: "not a container image"},
		{name: "config with another digest", do: func(t *testing.T, h *hostile) bool {
			h.manifest(t, "v1", func(h *hostile, m map[string]any) { h.SetBlob(m["config"].(ocispec.Descriptor).Digest, []byte("{}")) })
			return true
		}, want: "its manifest says", is: registry.ErrDigest},
		{name: "config of gigabytes", do: manifest(func(_ *hostile, m map[string]any) {
			c := m["config"].(ocispec.Descriptor)
			c.Size = 4 << 30
			m["config"] = c
		}), want: "at most 4194304 are allowed"},
		{name: "config of other layers", do: config(func(c map[string]any) {
			c["rootfs"] = map[string]any{"type": "layers", "diff_ids": []digest.Digest{digest.FromString("x"), digest.FromString("y")}}
		}), want: "has 2 layers, its manifest 1"},
		{name: "config with a diff_id of no algorithm", do: config(func(c map[string]any) {
			c["rootfs"] = map[string]any{"type": "layers", "diff_ids": []string{"md5:00"}}
		}), want: "unsupported digest algorithm"},
		{name: "config of a chroot", do: config(func(c map[string]any) { c["rootfs"] = map[string]any{"type": "base"} }), want: "is not made of layers"},
		{name: "no layers", do: manifest(func(_ *hostile, m map[string]any) { m["layers"] = []any{} }), want: "0 layers, between 1 and 127"},
		{name: "128 layers", do: manifest(func(h *hostile, m map[string]any) {
			m["layers"] = slices.Repeat([]ocispec.Descriptor{h.layers[0].desc}, registry.MaxLayers+1)
		}), want: "128 layers, between 1 and 127"},
		{name: "a layer of negative size", do: manifest(func(h *hostile, m map[string]any) {
			d := h.layers[0].desc
			d.Size = -1
			m["layers"] = []ocispec.Descriptor{d}
		}), want: "size -1"},
		{name: "a layer of exabytes", do: manifest(func(h *hostile, m map[string]any) {
			d := h.layers[0].desc
			d.Size = 1<<63 - 1
			m["layers"] = []ocispec.Descriptor{d}
		}), want: "at most 8589934592 are allowed"},
		{name: "layers from elsewhere", do: func(t *testing.T, h *hostile) bool {
			h.layers[0].desc.URLs = []string{h.elsewhere.URL + "/evil", "file:///etc/passwd"}
			return false
		}, want: ""}, // not asked
	}
}

// hostileLayers are layers that their digests are right of.
func hostileLayers() []row {
	// layer replaces the layer by other bytes; diffID nil means that it does not matter.
	layer := func(mediaType string, make func(t *testing.T) (blob, plain []byte)) func(*testing.T, *hostile) bool {
		return func(t *testing.T, h *hostile) bool {
			blob, plain := make(t)
			h.layers = []built{{desc: h.AddBlob(mediaType, blob), diffID: digest.FromBytes(plain), blob: blob}}
			return false
		}
	}
	packed := func(kind string, plain func(t *testing.T) []byte) func(*testing.T, *hostile) bool {
		return func(t *testing.T, h *hostile) bool {
			h.layers = []built{build(t, h.Registry, kind, plain(t), nil)}
			return false
		}
	}
	// TestBadLayers has one for the default limit.
	const most = 1 << 20
	bomb := func(t *testing.T) []byte {
		t.Helper()
		return headers(t, make([]byte, 4*most), &tar.Header{Name: "f", Mode: 0o644, Size: 4 * most})
	}
	limited := func(l Limits, do func(*testing.T, *hostile) bool) func(*testing.T, *hostile) bool {
		return func(t *testing.T, h *hostile) bool {
			h.limits = l
			return do(t, h)
		}
	}
	nested := func(t *testing.T) (blob, plain []byte) {
		t.Helper()
		_, inner := compress(t, "gzip", make([]byte, 1<<20))
		_, outer := compress(t, "gzip", inner)
		return outer, inner
	}
	return []row{
		{name: "gzip bomb", do: limited(Limits{Unpacked: most}, packed("gzip", bomb)), want: "layer exceeds a limit", is: unpack.ErrLimit},
		{name: "zstd bomb", do: limited(Limits{Unpacked: most}, packed("zstd", bomb)), want: "layer exceeds a limit", is: unpack.ErrLimit},
		{name: "gzip in gzip", do: layer(ocispec.MediaTypeImageLayerGzip, nested), want: "tar"}, // unpacked once, as the media type says
		{name: "gzip that says it is zstd", do: layer(ocispec.MediaTypeImageLayerZstd, nested), want: "magic number"},
		{name: "zstd with a window of 1 GiB", do: layer(ocispec.MediaTypeImageLayerZstd, func(t *testing.T) ([]byte, []byte) {
			plain := tarball(t, map[string]string{"f": content})
			// RFC 8878: magic number, a frame without sizes, its window, one block that is the last and not compressed.
			n := len(plain)<<3 | 1
			return append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, byte(n), byte(n >> 8), byte(n >> 16)}, plain...), plain
		}), want: "window"},
		{name: "more files than allowed", do: limited(Limits{Files: 1000}, packed("gzip", func(t *testing.T) []byte {
			all := make([]*tar.Header, 1001)
			for i := range all {
				all[i] = &tar.Header{Name: fmt.Sprintf("d/%d", i), Mode: 0o644}
			}
			return headers(t, nil, all...)
		})), want: "more than 1000 files", is: unpack.ErrLimit},
		{name: "one name 10000 times", do: limited(Limits{Files: 1000}, packed("gzip", func(t *testing.T) []byte {
			one := headers(t, nil, &tar.Header{Name: "f", Mode: 0o644})[:512]
			return append(bytes.Repeat(one, 10_000), make([]byte, 1024)...)
		})), want: "more than 1000 files", is: unpack.ErrLimit},
		{name: "deep folders", do: packed("gzip", func(t *testing.T) []byte {
			return headers(t, nil, &tar.Header{Name: strings.Repeat("d/", 300) + "f", Mode: 0o644})
		}), want: "more than 256 folders", is: unpack.ErrLimit},
		{name: "long names", do: packed("gzip", func(t *testing.T) []byte {
			return headers(t, nil, &tar.Header{Name: strings.Repeat("d", 5000), Mode: 0o644})
		}), want: "longer than 4095 bytes", is: unpack.ErrLimit},
		{name: "a name that the kernel refuses", do: packed("gzip", func(t *testing.T) []byte {
			return headers(t, nil, &tar.Header{Name: strings.Repeat("d", 300), Mode: 0o644})
		}), want: "file name too long"},
		{name: "a file above the root", do: packed("gzip", func(t *testing.T) []byte {
			return headers(t, nil, &tar.Header{Name: "../../f", Mode: 0o644})
		}), want: "outside its root"},
		{name: "a cut tar", do: packed("gzip", func(t *testing.T) []byte {
			return headers(t, []byte("x"), &tar.Header{Name: "f", Mode: 0o644, Size: 1})[:512]
		}), want: "EOF"},
		{name: "media type of nobody", do: layer("application/x-evil", nested), want: "media type"},
		{name: "media type of an index", do: layer(ocispec.MediaTypeImageIndex, nested), want: "media type"},
		{name: "another diff_id", do: func(_ *testing.T, h *hostile) bool {
			h.layers[0].diffID = digest.FromString("x")
			return false
		}, want: "does not match its diff_id", is: ErrDiffID},
		{name: "one blob with two diff_ids", do: func(_ *testing.T, h *hostile) bool {
			other := h.layers[0]
			other.diffID = digest.FromString("x")
			h.layers = append(h.layers, other)
			return false
		}, want: "diff_id", is: ErrDiffID, keeps: true},
		{name: "one layer twice", do: func(_ *testing.T, h *hostile) bool {
			h.layers = append(h.layers, h.layers[0])
			return false
		}, want: ""},
		{name: "data behind the tar's end", do: packed("gzip", func(t *testing.T) []byte {
			return append(tarball(t, map[string]string{"f": content}), tarball(t, map[string]string{"f": "evil"})...)
		}), want: ""}, // the first end counts, as for tar; the digests are of all of it
	}
}

// headers makes a layer of entries; the last one has the data.
func headers(t *testing.T, data []byte, entries ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i, e := range entries {
		if err := w.WriteHeader(e); err != nil {
			t.Fatal(err)
		}
		if i < len(entries)-1 {
			continue
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// manifest publishes a manifest of the layers with something changed.
func (h *hostile) manifest(t *testing.T, tag string, change func(h *hostile, m map[string]any)) {
	t.Helper()
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{Architecture: arch, OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{h.layers[0].diffID}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest,
		"config": h.AddBlob(ocispec.MediaTypeImageConfig, config), "layers": []ocispec.Descriptor{h.layers[0].desc},
	}
	change(h, m)
	h.AddManifest(t, tag, ocispec.MediaTypeImageManifest, m)
}

// index publishes an index of images that are said to be for this guest.
func (h *hostile) index(t *testing.T, tag string, manifests ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	for i := range manifests {
		manifests[i].Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	}
	return h.AddManifest(t, tag, ocispec.MediaTypeImageIndex, map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": manifests,
	})
}
