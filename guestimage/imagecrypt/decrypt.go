// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/unpack"
)

// Decrypt copies an image with all its encrypted layers decrypted by the keys of a ring. HMAC, the digest of the plain
// layer and that of its uncompressed archive have to match before anything is seen at the destination. An image without
// encrypted layers is an error.
func Decrypt(ctx context.Context, o CopyOptions, ring *KeyRing) (*Result, error) {
	c := &copier{
		o:       o,
		wanted:  func(_, _ int, l ocispec.Descriptor) bool { return encrypted(l) },
		nothing: errors.New("nothing to decrypt: no layer of the image is encrypted"),
	}
	c.change = func(ctx context.Context, c *copier, l ocispec.Descriptor, diffID digest.Digest) (ocispec.Descriptor, error) {
		return c.decryptLayer(ctx, l, diffID, ring)
	}
	return c.run(ctx)
}

func (c *copier) decryptLayer(ctx context.Context, l ocispec.Descriptor, diffID digest.Digest, ring *KeyRing) (ocispec.Descriptor, error) {
	plainType, _ := decrypt.PlainMediaType(l.MediaType)
	mediaType, err := ociLayerType(plainType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	compression, err := unpack.FromMediaType(plainType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	key, err := ring.unwrap(ctx, l.Annotations)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer key.Wipe()
	r, err := c.open(ctx, l)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer r.Close() // opened for reading
	plain, err := key.Reader(r)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := c.writeChecked(mediaType, plain, compression, diffID)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if want := key.PlainDigest(); want != "" && want.Algorithm() == digest.SHA256 && want != desc.Digest {
		return ocispec.Descriptor{}, fmt.Errorf("decrypted layer has the digest %s, %s was encrypted", desc.Digest, want)
	}
	return desc, nil
}

// writeChecked writes a plain layer whose uncompressed archive has to have the digest diffID.
func (c *copier) writeChecked(mediaType string, r io.Reader, compression unpack.Compression, diffID digest.Digest) (ocispec.Descriptor, error) {
	pr, pw := io.Pipe()
	checked := make(chan error, 1)
	go func() {
		err := checkDiffID(pr, compression, diffID)
		pr.CloseWithError(err) // after an error the writer ends, too
		checked <- err
	}()
	desc, err := c.out.write(mediaType, io.TeeReader(r, pw))
	pw.CloseWithError(err)
	if e := <-checked; err == nil {
		err = e
	}
	return desc, err
}

// checkDiffID reads a compressed layer to its end.
func checkDiffID(r io.Reader, compression unpack.Compression, diffID digest.Digest) error {
	tar, err := unpack.Decompress(compression, r)
	if err != nil {
		return fmt.Errorf("decrypted layer: %w", err)
	}
	defer tar.Close() // read to its end or failed
	check := diffID.Verifier()
	n, err := io.Copy(check, io.LimitReader(tar, unpack.DefaultSize+1))
	switch {
	case err != nil:
		return fmt.Errorf("decrypted layer: %w", err)
	case n > unpack.DefaultSize:
		return fmt.Errorf("decrypted layer is larger than %d bytes", int64(unpack.DefaultSize))
	case !check.Verified():
		return fmt.Errorf("decrypted layer does not have the diff_id %s of the image's config", diffID)
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // what a decompressor leaves
		return err
	}
	return nil
}
