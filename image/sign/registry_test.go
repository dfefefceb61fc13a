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

// beside takes the lookaside store from a fake.
type beside struct {
	Source
	fake *fakeSource
}

func (b beside) Lookaside(ctx context.Context, url string) (io.ReadCloser, error) {
	return b.fake.Lookaside(ctx, url)
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
	src := beside{FromRegistry(client), newSource()}
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
	if err := p.Check(t.Context(), r.Reference("v1"), img.Digest, beside{FromRegistry(none), newSource()}); !errors.Is(err, registry.ErrUntrusted) {
		t.Errorf("a registry that is not trusted: %v", err)
	}
}
