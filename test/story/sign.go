// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package story

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/internal/signtest"
)

// Sign signs the image of a reference by which the guest pulls it, and puts the signature beside it. identity is what the
// signature says that the image is.
func (r *Registry) Sign(ctx context.Context, signer *signtest.Signer, ref, identity string) error {
	ca, auth, err := r.credentials()
	if err != nil {
		return err
	}
	parsed, err := registry.ParseAuth(auth)
	if err != nil {
		return err
	}
	client := registry.New(registry.Config{CA: ca, Auth: parsed})
	defer client.Close()
	image, err := registry.ParseReference(strings.Replace(ref, GuestHost, LoopbackHost, 1))
	if err != nil {
		return err
	}
	desc, err := client.Resolve(ctx, image)
	if err != nil {
		return err
	}
	payload, annotations, err := signer.Sign(identity, desc.Digest)
	if err != nil {
		return err
	}
	layer := describe(signtest.MediaType, payload)
	config := []byte("{}")
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: describe(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{layer},
	}
	manifest.Layers[0].Annotations = annotations
	data, err := json.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("encode the signature's manifest: %w", err)
	}
	image.Tag = signtest.Tag(desc.Digest)
	pusher, err := client.Pusher(ctx, image)
	if err != nil {
		return err
	}
	return errors.Join(push(ctx, pusher, layer, payload), push(ctx, pusher, manifest.Config, config),
		push(ctx, pusher, describe(manifest.MediaType, data), data))
}

func describe(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func push(ctx context.Context, pusher remotes.Pusher, d ocispec.Descriptor, data []byte) error {
	w, err := pusher.Push(ctx, d)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("push %s: %w", d.MediaType, err)
	}
	return errors.Join(content.Copy(ctx, w, bytes.NewReader(data), d.Size, d.Digest), w.Close())
}
