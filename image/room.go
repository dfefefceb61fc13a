// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/store"
	"github.com/cloister-cc/cloister/image/unpack"
)

// check holds what a manifest says against the limits.
func (l Limits) check(img *registry.Image) error {
	if len(img.Layers) > l.Layers {
		return fmt.Errorf("%d layers, at most %d are allowed", len(img.Layers), l.Layers)
	}
	left := l.Image
	for i, layer := range img.Layers {
		size := layer.Descriptor.Size
		if size > l.Blob {
			return fmt.Errorf("layer %d has %d bytes, at most %d are allowed", i, size, l.Blob)
		}
		if size > left {
			return fmt.Errorf("layers have more than %d bytes together", l.Image)
		}
		left -= size
	}
	return nil
}

// room holds the layers of an image that are here, and makes sure that there is likely space for the others: as many
// bytes as they have in the registry, Limits.Expand times that where they are compressed.
func (s *Service) room(img *registry.Image, hold *store.Hold) error {
	var need, sum int64
	seen := make(map[digest.Digest]bool)
	for _, l := range img.Layers {
		blob := l.Descriptor.Digest
		if seen[blob] {
			continue
		}
		seen[blob] = true
		if have, ok := s.store.Layer(blob); ok && hold.Add(have) {
			continue
		}
		plain, _ := decrypt.PlainMediaType(l.Descriptor.MediaType)
		compression, err := unpack.FromMediaType(plain)
		if err != nil {
			return err
		}
		sum += l.Descriptor.Size
		if compression == unpack.None {
			need += l.Descriptor.Size
		} else {
			need += l.Descriptor.Size * s.config.Limits.Expand
		}
	}
	if need == 0 {
		return nil
	}
	if err := s.store.Ensure(need); err != nil {
		return fmt.Errorf("%d bytes are to be pulled: %w", sum, err)
	}
	return nil
}

// roomStep is how many bytes of a layer are unpacked between two looks at the space that is left.
const roomStep = 4 << 20

// roomReader looks whether the reserve is still there while a layer is unpacked, so that containers do not run out of
// space first.
type roomReader struct {
	r     io.Reader
	store *store.Store
	left  int64 // until the next look
}

func (r *roomReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		if err := r.store.Ensure(0); err != nil {
			return 0, err
		}
		r.left = roomStep
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	return n, err
}
