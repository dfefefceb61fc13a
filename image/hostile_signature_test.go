// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package image

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/sign"
	"github.com/cloister-cc/cloister/internal/signtest"
)

// The same for signatures in the registry: what is too large or out of reach is no missing signature, and nothing of it
// lets an image through or its layers be fetched.
func TestHostileSignatures(t *testing.T) {
	needRoot(t)
	on := func(part string, f func(w http.ResponseWriter, req *http.Request)) func(*testing.T, *signed) {
		return func(_ *testing.T, s *signed) {
			s.Hook = func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.Contains(req.URL.Path, part) {
					return false
				}
				f(w, req)
				return true
			}
		}
	}
	// list publishes a list of signatures.
	list := func(change func(s *signed, m *ocispec.Manifest)) func(*testing.T, *signed) {
		return func(t *testing.T, s *signed) {
			s.sign(t, s.repository, s.index.Digest)
			m := new(ocispec.Manifest)
			if err := json.Unmarshal(s.Manifest(signtest.Tag(s.index.Digest)), m); err != nil {
				t.Fatal(err)
			}
			change(s, m)
			s.AddManifest(t, signtest.Tag(s.index.Digest), ocispec.MediaTypeImageManifest, m)
		}
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, s *signed)
		want string
		is   error // nil: sign.ErrRejected must not be it either
	}{
		{"list without end", on(".sig", func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet {
				endless(w, make([]byte, 1<<16))
			}
		}), "larger than it may be", nil},
		{"list of 2 MiB", list(func(_ *signed, m *ocispec.Manifest) {
			m.Annotations = map[string]string{"x": strings.Repeat("x", 2<<20)}
		}), "larger than 1048576 bytes", nil},
		{"list of 65", list(func(_ *signed, m *ocispec.Manifest) { m.Layers = slices.Repeat(m.Layers, sign.MaxSignatures+1) }), "more than 64 signatures", nil},
		{"list that is forbidden", on(".sig", status(403)), "check the credentials that the guest has", registry.ErrUnauthorized},
		{"list that is down", on(".sig", status(503)), "gave up after", nil},
		{"no list", on(".sig", status(404)), "no signature exists", sign.ErrRejected},
		{"signature of gigabytes", list(func(_ *signed, m *ocispec.Manifest) { m.Layers[0].Size = 4 << 30 }), "at most 131072 are allowed", nil},
		{"signature without end", func(t *testing.T, s *signed) {
			var payload digest.Digest
			list(func(_ *signed, m *ocispec.Manifest) { payload = m.Layers[0].Digest })(t, s)
			on(payload.String(), func(w http.ResponseWriter, _ *http.Request) { endless(w, make([]byte, 1<<16)) })(t, s)
		}, "larger than the", registry.ErrDigest},
		{"signature that is another", func(t *testing.T, s *signed) {
			list(func(s *signed, m *ocispec.Manifest) {
				s.SetBlob(m.Layers[0].Digest, make([]byte, m.Layers[0].Size))
			})(t, s)
		}, "has digest", registry.ErrDigest},
		{"signature of another image", func(t *testing.T, s *signed) {
			s.sign(t, s.repository, digest.FromString("x"))
			other := s.Manifest(signtest.Tag(digest.FromString("x")))
			s.AddManifest(t, signtest.Tag(s.index.Digest), ocispec.MediaTypeImageManifest, json.RawMessage(other))
		}, "policy refuses", sign.ErrRejected},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSigned(t)
			tt.do(t, s)
			images, m := service(t, s.Registry, func(c *Config) { c.Policy = s.policy(t, sign.Config{}) })
			err := mount(t.Context(), images, "c1", s.Reference("v1"), "/c1")
			contains(t, err, tt.want)
			if tt.is != nil && !errors.Is(err, tt.is) || !errors.Is(tt.is, sign.ErrRejected) && errors.Is(err, sign.ErrRejected) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
			checkText(t, err)
			if layers, staging := stored(t, images); len(m.targets)+len(layers)+len(staging) != 0 {
				t.Errorf("mounts %v, layers %v, staging %v", m.targets, layers, staging)
			}
			if n := s.Sent(); n > 16<<20 {
				t.Errorf("%d bytes were sent", n)
			}
		})
	}
}
