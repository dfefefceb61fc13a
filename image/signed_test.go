// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package image

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/sign"
	"github.com/cloister-cc/cloister/internal/signtest"
)

// signed is a registry with an image in an index, and the key that its policy wants.
type signed struct {
	*registrytest.Registry
	signer          *signtest.Signer
	index, manifest ocispec.Descriptor
	repository      string
}

func newSigned(t *testing.T) *signed {
	t.Helper()
	signer, err := signtest.New()
	if err != nil {
		t.Fatal(err)
	}
	r := registrytest.New(t)
	s := &signed{Registry: r, signer: signer, repository: strings.TrimSuffix(r.Reference("v1"), ":v1")}
	s.manifest = addImage(t, r, "manifest", build(t, r, "gzip", tarball(t, map[string]string{"f": "x"}), nil))
	s.manifest.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	s.index = r.AddManifest(t, "v1", ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{s.manifest},
	})
	return s
}

// sign signs a digest of the repository, or of what identity names.
func (s *signed) sign(t *testing.T, identity string, d digest.Digest) {
	t.Helper()
	payload, annotations, err := s.signer.Sign(identity, d)
	if err != nil {
		t.Fatal(err)
	}
	blob := s.AddBlob(signtest.MediaType, payload)
	blob.Annotations = annotations
	s.AddImage(t, signtest.Tag(d), "", []ocispec.Descriptor{blob}, nil)
}

func (s *signed) policy(t *testing.T, c sign.Config) *sign.Policy {
	t.Helper()
	var err error
	if c.Policy, err = s.signer.Policy(); err != nil {
		t.Fatal(err)
	}
	c.TempDir = t.TempDir()
	p, err := sign.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// cosign signs the index, podman wants the manifest of the platform signed: either is enough, nothing is not.
func TestSignedIndexOrManifest(t *testing.T) {
	needRoot(t)
	for name, row := range map[string]struct {
		sign func(t *testing.T, s *signed)
		want string
	}{
		"nothing":            {func(*testing.T, *signed) {}, "no signature exists"},
		"index":              {func(t *testing.T, s *signed) { s.sign(t, s.repository, s.index.Digest) }, ""},
		"manifest":           {func(t *testing.T, s *signed) { s.sign(t, s.repository, s.manifest.Digest) }, ""},
		"another repository": {func(t *testing.T, s *signed) { s.sign(t, s.repository+"2", s.index.Digest) }, "identity"},
		"another key": {func(t *testing.T, s *signed) {
			other := newSigned(t)
			mine := s.signer
			s.signer = other.signer
			s.sign(t, s.repository, s.index.Digest)
			s.signer = mine
		}, "signature"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigned(t)
			row.sign(t, s)
			images, _ := service(t, s.Registry, func(c *Config) { c.Policy = s.policy(t, sign.Config{}) })
			for _, ref := range []string{s.Reference("v1"), s.repository + "@" + s.index.Digest.String()} {
				err := mount(t.Context(), images, "c1", ref, "/c1")
				if row.want == "" {
					if err != nil {
						t.Errorf("%s: %v", ref, err)
					}
				} else {
					contains(t, err, "policy refuses", row.want)
				}
				if err := images.Unmount(t.Context(), "c1"); err != nil {
					t.Fatal(err)
				}
			}
			if layers, _ := stored(t, images); row.want != "" && len(layers) != 0 {
				t.Errorf("layers of a refused image: %v", layers)
			}
		})
	}
}

// What was allowed once stays so, for that reference and digest alone; a tag that moves is asked about anew.
func TestDecisionIsRemembered(t *testing.T) {
	needRoot(t)
	s := newSigned(t)
	s.sign(t, s.repository, s.index.Digest)
	images, _ := service(t, s.Registry, func(c *Config) { c.Policy = s.policy(t, sign.Config{}) })
	if err := mount(t.Context(), images, "c1", s.Reference("v1"), "/c1"); err != nil {
		t.Fatal(err)
	}
	before := s.Requests(".sig")
	if err := mount(t.Context(), images, "c2", s.Reference("v1"), "/c2"); err != nil {
		t.Fatal(err)
	}
	if s.Requests(".sig") != before {
		t.Error("signatures were fetched again for the same reference and digest")
	}
	addImage(t, s.Registry, "v1", build(t, s.Registry, "gzip", tarball(t, map[string]string{"f": "evil"}), nil))
	contains(t, mount(t.Context(), images, "c3", s.Reference("v1"), "/c3"), "policy refuses")
}

// A lookaside store is asked through the same client, with the same certificates.
func TestLookaside(t *testing.T) {
	needRoot(t)
	s := newSigned(t)
	var asked []string
	signature := []byte(nil)
	stores := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked = append(asked, req.URL.Path)
		if _, _, ok := req.BasicAuth(); ok || req.Header.Get("Authorization") != "" {
			t.Error("a lookaside store got credentials")
		}
		if signature == nil || !strings.HasSuffix(req.URL.Path, "/signature-1") {
			http.NotFound(w, req)
			return
		}
		_, _ = w.Write(signature)
	}))
	defer stores.Close()
	ca := s.CA()
	ca.AddCert(stores.Certificate())
	images, _ := service(t, s.Registry, func(c *Config) {
		c.CA = ca
		c.Auth = s.AuthJSON()
		c.Policy = s.policy(t, sign.Config{Lookaside: []byte("default-docker:\n  lookaside: " + stores.URL + "/sigs\n")})
	})
	contains(t, mount(t.Context(), images, "c1", s.Reference("v1"), "/c1"), "policy refuses", "no signature exists")
	if len(asked) == 0 || !strings.Contains(asked[0], "sha256="+s.index.Digest.Encoded()) {
		t.Errorf("the lookaside store was asked for %q", asked)
	}
	signature = []byte("not a signature")
	contains(t, mount(t.Context(), images, "c1", s.Reference("v1"), "/c1"), "policy refuses")
	payload, annotations, err := s.signer.Sign(s.repository, s.index.Digest)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := json.Marshal(map[string]any{"mimeType": signtest.MediaType, "payload": payload, "annotations": annotations})
	if err != nil {
		t.Fatal(err)
	}
	signature = append([]byte("\x00sigstore-json\n"), stored...)
	if err := mount(t.Context(), images, "c1", s.Reference("v1"), "/c1"); err != nil {
		t.Errorf("a good signature in the lookaside store: %v", err)
	}
}

// Threat: a registry composes an image of layers of a signed one. The policy refuses it there; then the host names it at
// another registry, of which the policy wants no signatures, and which does not have it. Seen: that registry is asked, so
// the image is not found: what one registry has said is not believed of another.
func TestRefusedImageIsNotRemembered(t *testing.T) {
	needRoot(t)
	s := newSigned(t)
	s.sign(t, s.repository, s.index.Digest)
	trusted := registrytest.New(t)
	public, err := s.signer.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	key, err := json.Marshal(string(public))
	if err != nil {
		t.Fatal(err)
	}
	p, err := sign.New(sign.Config{TempDir: t.TempDir(), Policy: []byte(`{
		"default": [{"type": "sigstoreSigned", "keyData": ` + string(key) + `, "signedIdentity": {"type": "matchRepository"}}],
		"transports": {"docker": {"` + trusted.Host() + `": [{"type": "insecureAcceptAnything"}]}}}`)})
	if err != nil {
		t.Fatal(err)
	}
	images, m := service(t, s.Registry, func(c *Config) {
		c.CA.AddCert(trusted.Certificate())
		c.Policy = p
	})
	if err := mount(t.Context(), images, "c1", s.Reference("v1"), "/c1"); err != nil {
		t.Fatal(err)
	}
	composed := addImage(t, s.Registry, "evil", build(t, s.Registry, "gzip", tarball(t, map[string]string{"f": "x"}), nil))
	elsewhere := "/test/image@"
	for _, ref := range []string{s.repository + "@" + composed.Digest.String(), trusted.Host() + elsewhere + composed.Digest.String()} {
		if err := mount(t.Context(), images, "c2", ref, "/c2"); err == nil {
			t.Errorf("%s is mounted: %v", ref, m.targets["/c2"])
		}
	}
	// An image that may be used at one place is no more known at the other.
	if err := mount(t.Context(), images, "c3", trusted.Host()+elsewhere+s.index.Digest.String(), "/c3"); err == nil {
		t.Error("an image of one registry is mounted by the name of another")
	}
	if trusted.Requests("") == 0 {
		t.Error("the other registry was not asked")
	}
}

// What is asked for is decided by the reference, whichever digest a signature may be for.
func TestSecondQuestionStaysInItsScope(t *testing.T) {
	s := newSigned(t)
	public, err := s.signer.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	key, err := json.Marshal(string(public))
	if err != nil {
		t.Fatal(err)
	}
	ref := s.repository + "@" + s.index.Digest.String()
	p, err := sign.New(sign.Config{TempDir: t.TempDir(), Policy: []byte(`{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {
		"` + ref + `": [{"type": "sigstoreSigned", "keyData": ` + string(key) + `, "signedIdentity": {"type": "matchRepository"}}],
		"` + s.repository + `": [{"type": "insecureAcceptAnything"}]}}}`)})
	if err != nil {
		t.Fatal(err)
	}
	images, _ := service(t, s.Registry, func(c *Config) { c.Policy = p })
	contains(t, mount(t.Context(), images, "c1", ref, "/c1"), "policy refuses", "no signature exists")
}

// A manifest that cannot be fetched is a failure, no refusal: a retry may help.
func TestFailureIsNoRefusal(t *testing.T) {
	s := newSigned(t)
	images, _ := service(t, s.Registry, func(c *Config) { c.Policy = s.policy(t, sign.Config{}) })
	s.Hook = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, s.manifest.Digest.String()) {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	err := mount(t.Context(), images, "c1", s.Reference("v1"), "/c1")
	contains(t, err, "no signature exists", "manifest")
	if errors.Is(err, sign.ErrRejected) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q", err)
	}
}
