// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/registry"
)

// FromRegistry is the Source of a client of registries: what it does not get there, it does not get elsewhere.
func FromRegistry(client *registry.Client) Source { return registrySource{client} }

type registrySource struct{ client *registry.Client }

// Manifest implements Source.
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

// Blob implements Source.
func (s registrySource) Blob(ctx context.Context, name string, size int64) (io.ReadCloser, error) {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return nil, err
	}
	rc, err := s.client.Blob(ctx, ref, ocispec.Descriptor{MediaType: cosignPayload, Digest: ref.Digest, Size: size})
	return rc, notFound(err)
}

// Lookaside implements Source.
func (s registrySource) Lookaside(ctx context.Context, url string) (io.ReadCloser, error) {
	rc, err := s.client.Get(ctx, url, MaxSignatureSize+1) // so much that readAll sees that it is too much
	return rc, notFound(err)
}

// notFound marks what is not there in the way that a policy knows.
func notFound(err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
