// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/registry"
)

// Access says how a registry is reached.
type Access struct {
	// CA holds the certificates that the registry is checked against; nil trusts none.
	CA *x509.CertPool
	// Auth holds the bytes of an auth.json, see registry.ParseAuth; empty means no credentials.
	Auth []byte
}

// registrySource is an image in a registry.
type registrySource struct {
	client *registry.Client
	ref    registry.Reference
}

func openRegistry(l Location, a Access) (*registrySource, error) {
	ref, err := registry.ParseReference(l.Path)
	if err != nil {
		return nil, err
	}
	client, err := a.Client()
	return &registrySource{client, ref}, err
}

// Client returns a client of registries, which the caller closes.
func (a Access) Client() (*registry.Client, error) {
	auth, err := registry.ParseAuth(a.Auth)
	if err != nil {
		return nil, err
	}
	return registry.New(registry.Config{CA: a.CA, Auth: auth, UserAgent: "cloister"}), nil
}

func (r *registrySource) root(ctx context.Context) ([]byte, digest.Digest, error) {
	desc, err := r.client.Resolve(ctx, r.ref)
	if err != nil {
		return nil, "", err
	}
	data, err := r.client.Manifest(ctx, r.ref, desc.Digest)
	return data, desc.Digest, err
}

func (r *registrySource) blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := checkBlob(desc); err != nil {
		return nil, err
	}
	return r.client.Blob(ctx, r.ref, desc)
}

func (r *registrySource) Close() error {
	r.client.Close()
	return nil
}

// Push copies the image of an OCI layout to a registry, under a reference host[:port]/repository:tag, and returns the
// digest of its manifest or index. Blobs that the registry has already are not sent again.
func Push(ctx context.Context, dir, reference string, a Access) (_ digest.Digest, err error) {
	to, err := openPush(reference, a)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	from := &blobTree{tree: folder(dir), location: Location{Transport: OCI, Path: dir}}
	return to.push(ctx, from)
}

func openPush(reference string, a Access) (*registrySource, error) {
	to, err := openRegistry(Location{Transport: Docker, Path: reference}, a)
	if err != nil {
		return nil, err
	}
	if to.ref.Digest != "" {
		return nil, errors.New("push: the reference has a digest, want a tag")
	}
	return to, nil
}

// push sends an image: first what a manifest names, then the manifest, as registries want it.
func (r *registrySource) push(ctx context.Context, from source) (digest.Digest, error) {
	g, err := readGraph(ctx, from, nil)
	if err != nil {
		return "", err
	}
	pusher, err := r.client.Pusher(ctx, r.ref)
	if err != nil {
		return "", err
	}
	for _, img := range g.images {
		for _, d := range append(append([]ocispec.Descriptor{}, img.manifest.Layers...), img.manifest.Config) {
			if err := pushBlob(ctx, pusher, from, d); err != nil {
				return "", fmt.Errorf("push %s to %s: %w", d.Digest, r.ref, registry.Explain(r.ref, err))
			}
		}
		if g.index == nil {
			continue // its manifest is the root
		}
		byDigest := registry.Reference{Host: r.ref.Host, Repository: r.ref.Repository, Digest: img.desc.Digest}
		p, err := r.client.Pusher(ctx, byDigest)
		if err != nil {
			return "", err
		}
		if err := pushBlob(ctx, p, from, img.desc); err != nil {
			return "", fmt.Errorf("push %s to %s: %w", img.desc.Digest, r.ref, registry.Explain(r.ref, err))
		}
	}
	if err := pushData(ctx, pusher, g.root, bytes.NewReader(g.data)); err != nil {
		return "", fmt.Errorf("push %s: %w", r.ref, registry.Explain(r.ref, err))
	}
	return g.root.Digest, nil
}

func pushBlob(ctx context.Context, pusher remotes.Pusher, from source, d ocispec.Descriptor) error {
	if err := checkBlob(d); err != nil {
		return err
	}
	r, err := from.blob(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close() // opened for reading
	return pushData(ctx, pusher, d, verify(r, d))
}

func pushData(ctx context.Context, pusher remotes.Pusher, d ocispec.Descriptor, r io.Reader) (err error) {
	w, err := pusher.Push(ctx, d)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	if err := w.Commit(ctx, d.Size, d.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}
