// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/unpack"
)

// Image is an image for one architecture, opened by OpenImage to be read. It is used by one goroutine.
type Image struct {
	// Digest is that of what the location's name stands for: of an index, or of the manifest.
	Digest digest.Digest
	// Manifest is the digest of the manifest.
	Manifest digest.Digest

	src     source
	layers  []ocispec.Descriptor
	diffIDs []digest.Digest
}

// OpenImage reads and checks all of an image but its layers. Of an index it takes the image that a guest of that
// architecture (a GOARCH) takes, too. The caller closes the image.
func OpenImage(ctx context.Context, l Location, a Access, arch string) (_ *Image, err error) {
	s, err := openSource(l, a)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	data, d, err := s.root(ctx)
	if err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(data) != d {
		return nil, fmt.Errorf("manifest %s does not match its digest", d)
	}
	img := &Image{Digest: d, Manifest: d, src: s}
	if registry.IsIndex(data) {
		desc, err := chooseArch(data, arch)
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", d, err)
		}
		if data, err = small(ctx, s, desc); err != nil {
			return nil, err
		}
		img.Manifest = desc.Digest
	}
	if err := img.readManifest(ctx, data, arch); err != nil {
		return nil, err
	}
	return img, nil
}

// chooseArch finds the image for linux on arch in an index: the first, as guests do.
func chooseArch(data []byte, arch string) (ocispec.Descriptor, error) {
	index, err := registry.ParseIndex(data)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, m := range index.Manifests {
		if !notImage(m) && m.Platform != nil && m.Platform.OS == "linux" && m.Platform.Architecture == arch {
			return m, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("no image for linux/%s", arch)
}

func (i *Image) readManifest(ctx context.Context, data []byte, arch string) error {
	m, err := registry.ParseManifest(data)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", i.Manifest, err)
	}
	config, diffIDs, err := graphImage{ocispec.Descriptor{Digest: i.Manifest}, m}.diffIDs(ctx, i.src)
	if err != nil {
		return err
	}
	var platform ocispec.Platform
	if err := json.Unmarshal(config, &platform); err != nil {
		return fmt.Errorf("config: parse: %w", err)
	}
	if platform.OS != "linux" || platform.Architecture != arch {
		return fmt.Errorf("image is for %.20q/%.20q, not for linux/%s", platform.OS, platform.Architecture, arch)
	}
	i.layers, i.diffIDs = m.Layers, diffIDs
	return nil
}

// Close ends the use of the image.
func (i *Image) Close() error { return i.src.Close() }

// Layers is the number of the image's layers.
func (i *Image) Layers() int { return len(i.layers) }

// ReadLayer gives use the uncompressed tar of layer n, 0 being the lowest, which use reads to its end. What it reads is
// not verified yet: only if ReadLayer returns nil was all of it the image's, by digest, HMAC and diff_id. An encrypted
// layer is opened with the ring, see ErrNoKey and ErrWrongKey.
func (i *Image) ReadLayer(ctx context.Context, n int, ring *KeyRing, use func(tar io.Reader) error) (err error) {
	l := i.layers[n]
	defer func() {
		if err != nil {
			err = fmt.Errorf("layer %d (%s): %w", n, l.Digest, err)
		}
	}()
	plainType, isEncrypted := decrypt.PlainMediaType(l.MediaType)
	compression, err := unpack.FromMediaType(plainType)
	if err != nil {
		return err
	}
	if err := checkBlob(l); err != nil {
		return err
	}
	var key *decrypt.LayerKey
	if isEncrypted {
		if key, err = ring.unwrap(ctx, l.Annotations); err != nil {
			return err
		}
		defer key.Wipe()
	}
	r, err := i.src.blob(ctx, l)
	if err != nil {
		return err
	}
	defer r.Close() // read to its verified end, or failed
	plain := verify(r, l)
	if key != nil {
		if plain, err = key.Reader(plain); err != nil {
			return err
		}
	}
	return readVerified(ctx, plain, compression, i.diffIDs[n], use)
}

// readVerified gives use the tar of a layer and checks its diff_id, and everything that comes to light at plain's end.
func readVerified(ctx context.Context, plain io.Reader, compression unpack.Compression, diffID digest.Digest, use func(tar io.Reader) error) error {
	check := diffID.Verifier()
	if err := useTar(plain, compression, check, use); err != nil {
		// A layer that was changed on the way is told from one that is wrong in itself, or too large.
		if errors.Is(err, unpack.ErrLimit) || ctx.Err() != nil {
			return err
		}
		if _, late := io.Copy(io.Discard, plain); late != nil {
			return late
		}
		return err
	}
	// The decompressor may have stopped before the end, and only the end says that digest and HMAC are right.
	rest, err := io.Copy(io.Discard, plain)
	switch {
	case err != nil:
		return err
	case rest != 0:
		return fmt.Errorf("%d bytes after the end of the layer's compressed data", rest)
	case !check.Verified():
		return fmt.Errorf("layer does not have the diff_id %s of the image's config", diffID)
	}
	return nil
}

func useTar(plain io.Reader, compression unpack.Compression, check io.Writer, use func(tar io.Reader) error) error {
	tar, err := unpack.Decompress(compression, plain)
	if err != nil {
		return err
	}
	defer tar.Close() // read to its end or failed
	return use(io.TeeReader(tar, check))
}
