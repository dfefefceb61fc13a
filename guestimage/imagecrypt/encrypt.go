// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/unpack"
)

// Encrypt copies an image with the layers of CopyOptions.Layers encrypted for all recipients. Layers that are encrypted
// already stay as they are; that none is left to encrypt is an error. After an error nothing is left at the destination.
func Encrypt(ctx context.Context, o CopyOptions, recipients []Recipient) (*Result, error) {
	if err := checkRecipients(recipients); err != nil {
		return nil, err
	}
	if o.Destination.Transport == DockerArchive {
		return nil, errNoPlaceForKeys
	}
	c := &copier{o: o, change: func(ctx context.Context, c *copier, l ocispec.Descriptor, _ digest.Digest) (ocispec.Descriptor, error) {
		return c.encryptLayer(ctx, l, recipients)
	}}
	c.wanted = func(i, n int, l ocispec.Descriptor) bool {
		return !encrypted(l) && chosenLayer(o.Layers, i, n)
	}
	c.nothing = errors.New("nothing to encrypt: every chosen layer is encrypted already")
	return c.run(ctx)
}

// chosenLayer says whether layer i of n is one of the numbers; negative ones count from the top layer, -1.
func chosenLayer(numbers []int, i, n int) bool {
	for _, k := range numbers {
		if k == i || k == i-n {
			return true
		}
	}
	return len(numbers) == 0
}

func (c *copier) encryptLayer(ctx context.Context, l ocispec.Descriptor, recipients []Recipient) (ocispec.Descriptor, error) {
	mediaType, err := encryptedType(l.MediaType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	r, err := c.open(ctx, l)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer r.Close() // opened for reading
	cipherText, finish, err := EncryptLayer(r, l.Digest, recipients)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := c.out.write(mediaType, cipherText)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc.Annotations, err = finish()
	return desc, err
}

// ociLayerType returns OCI's name of a layer's media type. Encrypted layers keep theirs.
func ociLayerType(mediaType string) (string, error) {
	plain, _ := decrypt.PlainMediaType(mediaType)
	c, err := unpack.FromMediaType(plain)
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(mediaType, "application/vnd.docker.") {
		return mediaType, nil
	}
	return map[unpack.Compression]string{
		unpack.None: ocispec.MediaTypeImageLayer,
		unpack.Gzip: ocispec.MediaTypeImageLayerGzip,
		unpack.Zstd: ocispec.MediaTypeImageLayerZstd,
	}[c], nil
}

// encryptedType returns the media type of an encrypted layer, always one of OCI's.
func encryptedType(mediaType string) (string, error) {
	if _, encrypted := decrypt.PlainMediaType(mediaType); encrypted {
		return "", errors.New("layer is encrypted already")
	}
	t, err := ociLayerType(mediaType)
	return t + "+encrypted", err
}

// EncryptLayer encrypts a layer with a new key. Once the returned reader has been read to its end, finish returns the
// annotations of the encrypted layer's descriptor. d is the digest of what r has.
func EncryptLayer(r io.Reader, d digest.Digest, recipients []Recipient) (_ io.Reader, finish func() (map[string]string, error), _ error) {
	if err := checkRecipients(recipients); err != nil {
		return nil, nil, err
	}
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return nil, nil, fmt.Errorf("set up layer cipher: %w", err)
	}
	cipherText, finalize, err := handler.Encrypt(r, blockcipher.AES256CTR)
	if err != nil {
		return nil, nil, fmt.Errorf("set up layer cipher: %w", err)
	}
	return cipherText, func() (map[string]string, error) {
		o, err := finalize()
		if err != nil {
			return nil, fmt.Errorf("finish layer: %w", err)
		}
		defer clear(o.Private.SymmetricKey)
		o.Private.Digest = d
		return annotate(&o, recipients)
	}, nil
}

// annotate makes the annotations of an encrypted layer.
func annotate(o *blockcipher.LayerBlockCipherOptions, recipients []Recipient) (map[string]string, error) {
	public, err := json.Marshal(o.Public)
	if err != nil {
		return nil, fmt.Errorf("encode cipher options: %w", err)
	}
	private, err := json.Marshal(o.Private)
	if err != nil {
		return nil, errors.New("encode layer key") // the error could show the key
	}
	defer clear(private)
	annotations, err := wrapAll(private, recipients)
	if err != nil {
		return nil, err
	}
	annotations[decrypt.PublicAnnotation] = base64.StdEncoding.EncodeToString(public)
	return annotations, nil
}
