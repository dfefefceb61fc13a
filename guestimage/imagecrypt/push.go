// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/registry"
)

// PushOptions say how a registry is reached.
type PushOptions struct {
	// CA holds the certificates that the registry is checked against; nil trusts none.
	CA *x509.CertPool
	// Auth holds the bytes of an auth.json, see registry.ParseAuth; empty means no credentials.
	Auth []byte
}

// Push copies the image of an OCI layout to a registry, under a reference host[:port]/repository:tag, and returns the
// manifest's descriptor. Blobs that the registry has already are not sent again.
func Push(ctx context.Context, dir, reference string, o PushOptions) (ocispec.Descriptor, error) {
	ref, err := registry.ParseReference(reference)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if ref.Digest != "" {
		return ocispec.Descriptor{}, errors.New("push: the reference has a digest, want a tag")
	}
	auth, err := registry.ParseAuth(o.Auth)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	l, err := openLayout(dir)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, m, err := l.manifest()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	client := registry.New(registry.Config{CA: o.CA, Auth: auth, UserAgent: "cloister"})
	defer client.Close()
	pusher, err := client.Pusher(ctx, ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	// The manifest comes last: a registry takes it only when it has what it names.
	for _, d := range append(append([]ocispec.Descriptor{}, m.Layers...), m.Config, desc) {
		if err := pushBlob(ctx, pusher, l, d); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("push %s to %s: %w", d.Digest, ref, registry.Explain(ref, err))
		}
	}
	return desc, nil
}

func pushBlob(ctx context.Context, pusher remotes.Pusher, l *layout, d ocispec.Descriptor) (err error) {
	f, err := l.open(d)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	w, err := pusher.Push(ctx, d)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := io.Copy(w, f); err != nil {
		return err
	}
	if err := w.Commit(ctx, d.Size, d.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}
