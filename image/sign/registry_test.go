// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package sign

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/registry"
)

// registrySource fetches with the guest's own registry client.
type registrySource struct {
	*fakeSource // has the lookaside store
	client      *registry.Client
}

func (s registrySource) Manifest(ctx context.Context, name string) (io.ReadCloser, error) {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return nil, err
	}
	desc, err := s.client.Resolve(ctx, ref)
	if err != nil {
		return nil, notFound(err)
	}
	data, err := s.client.Manifest(ctx, ref, desc.Digest)
	if err != nil {
		return nil, notFound(err)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (s registrySource) Blob(ctx context.Context, name string, size int64) (io.ReadCloser, error) {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return nil, err
	}
	rc, err := s.client.Blob(ctx, ref, ocispec.Descriptor{MediaType: cosignPayload, Digest: ref.Digest, Size: size})
	return rc, notFound(err)
}

func notFound(err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return errors.Join(ErrNotFound, err)
	}
	return err
}

// The same over TLS, with an image and its signatures in a registry.
func TestWithRegistry(t *testing.T) {
	key, public := ecKey(t)
	r := registrytest.New(t)
	r.Auth = "bearer"
	layer := r.AddBlob(ocispec.MediaTypeImageLayer, []byte("a layer"))
	img := r.AddImage(t, "v1", "s390x", []ocispec.Descriptor{layer}, []digest.Digest{layer.Digest})
	auth, err := registry.ParseAuth(r.AuthJSON())
	if err != nil {
		t.Fatal(err)
	}
	client := registry.New(registry.Config{CA: r.CA(), Auth: auth})
	t.Cleanup(client.Close)
	src := registrySource{newSource(), client}
	p := load(t, policyOf(kindSigstore, `,"keyData":`+b64(public)), nil)
	outcome(t, p.Check(t.Context(), r.Reference("v1"), img.Digest, src), "reject: no signature exists")

	s := cosign(t, key, r.Reference("v1"), img.Digest)
	blob := r.AddBlob(cosignPayload, s.payload)
	blob.Annotations = s.annotations
	r.AddImage(t, "sha256-"+img.Digest.Encoded()+".sig", "", []ocispec.Descriptor{blob}, nil)
	outcome(t, p.Check(t.Context(), r.Reference("v1"), img.Digest, src), "")
	outcome(t, p.Check(t.Context(), r.Reference("@"+img.Digest.String()), img.Digest, src), "")
	outcome(t, p.Check(t.Context(), r.Reference("v2"), img.Digest, src), "reject: Signature for identity")

	r.SetBlob(blob.Digest, bytes.Repeat([]byte("x"), int(blob.Size)))
	if err := p.Check(t.Context(), r.Reference("v1"), img.Digest, src); err == nil || errors.Is(err, ErrRejected) {
		t.Errorf("a payload that the registry has swapped: %v", err)
	}
	none := registry.New(registry.Config{})
	t.Cleanup(none.Close)
	if err := p.Check(t.Context(), r.Reference("v1"), img.Digest, registrySource{newSource(), none}); !errors.Is(err, registry.ErrUntrusted) {
		t.Errorf("a registry that is not trusted: %v", err)
	}
}
