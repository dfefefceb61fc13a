// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/unpack"
	"github.com/cloister-cc/cloister/keys"
)

// KeySize is the size of a recipient's key in bytes.
const KeySize = 32

// Recipient is somebody who can decrypt: a guest that has the key by that name.
type Recipient struct {
	// KeyURI is the key's name, kbs:///repository/type/tag.
	KeyURI string
	// Key has KeySize bytes. It stays the caller's.
	Key *keys.Secret
}

func checkRecipients(recipients []Recipient) error {
	if len(recipients) == 0 {
		return errors.New("encrypt: no recipients")
	}
	for _, r := range recipients {
		if _, err := keys.ParseURI(r.KeyURI); err != nil {
			return err
		}
		if n := len(r.Key.Bytes()); n != KeySize {
			return fmt.Errorf("key %s has %d bytes, want %d", r.KeyURI, n, KeySize)
		}
	}
	return nil
}

// Encrypt writes the image of the OCI layout src to dst with every layer encrypted for all recipients, and returns the
// new manifest's descriptor. A layer that is encrypted already is an error. After an error nothing is left at dst.
func Encrypt(ctx context.Context, src, dst string, recipients []Recipient) (_ ocispec.Descriptor, err error) {
	if err := checkRecipients(recipients); err != nil {
		return ocispec.Descriptor{}, err
	}
	in, err := openLayout(src)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	_, m, err := in.manifest()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	out, err := createLayout(dst)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.discard())
		}
	}()
	if err := copyConfig(in, out, m.Config); err != nil {
		return ocispec.Descriptor{}, err
	}
	for i, l := range m.Layers {
		if err := ctx.Err(); err != nil {
			return ocispec.Descriptor{}, err
		}
		if m.Layers[i], err = encryptLayer(in, out, l, recipients); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("encrypt layer %d: %w", i, err)
		}
	}
	m.MediaType = ocispec.MediaTypeImageManifest // Docker's has no encrypted layers
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	return out.finish(m)
}

func copyConfig(in, out *layout, desc ocispec.Descriptor) error {
	data, err := in.small(desc)
	if err != nil {
		return err
	}
	copied, err := out.write(ocispec.MediaTypeImageConfig, strings.NewReader(string(data)))
	if err == nil && copied.Digest != desc.Digest {
		err = fmt.Errorf("config %s does not have a sha256 digest", desc.Digest)
	}
	return err
}

func encryptLayer(in, out *layout, l ocispec.Descriptor, recipients []Recipient) (ocispec.Descriptor, error) {
	mediaType, err := encryptedType(l.MediaType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	f, err := in.open(l)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close() // opened for reading
	check := l.Digest.Verifier()
	cipherText, finish, err := EncryptLayer(io.TeeReader(f, check), l.Digest, recipients)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := out.write(mediaType, cipherText)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if !check.Verified() {
		return ocispec.Descriptor{}, fmt.Errorf("blob %s does not match its digest", l.Digest)
	}
	annotations, err := finish()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc.Annotations = make(map[string]string)
	maps.Copy(desc.Annotations, l.Annotations)
	maps.Copy(desc.Annotations, annotations)
	return desc, nil
}

// encryptedType returns the media type of an encrypted layer, always one of OCI's.
func encryptedType(mediaType string) (string, error) {
	if _, encrypted := decrypt.PlainMediaType(mediaType); encrypted {
		return "", errors.New("layer is encrypted already")
	}
	c, err := unpack.FromMediaType(mediaType)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(mediaType, "application/vnd.docker.") {
		mediaType = map[unpack.Compression]string{
			unpack.None: ocispec.MediaTypeImageLayer,
			unpack.Gzip: ocispec.MediaTypeImageLayerGzip,
			unpack.Zstd: ocispec.MediaTypeImageLayerZstd,
		}[c]
	}
	return mediaType + "+encrypted", nil
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
	packets := make([]string, 0, len(recipients))
	for _, r := range recipients {
		p, err := wrap(private, r)
		if err != nil {
			return nil, err
		}
		packets = append(packets, base64.StdEncoding.EncodeToString(p))
	}
	return map[string]string{
		decrypt.KeysAnnotation:   strings.Join(packets, ","),
		decrypt.PublicAnnotation: base64.StdEncoding.EncodeToString(public),
	}, nil
}

// packet is a wrapped layer key, version 1, with the fields in the order in which coco_keyprovider writes them.
type packet struct {
	KeyID    string `json:"kid"`
	Wrapped  []byte `json:"wrapped_data"`
	IV       []byte `json:"iv"`
	WrapType string `json:"wrap_type"`
}

// wrap encrypts a layer key for a recipient with AES-256-GCM and a random IV.
func wrap(private []byte, r Recipient) ([]byte, error) {
	block, err := aes.NewCipher(r.Key.Bytes())
	if err != nil {
		return nil, fmt.Errorf("wrap layer key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("wrap layer key: %w", err)
	}
	iv := make([]byte, aead.NonceSize())
	_, _ = rand.Read(iv) // never fails, see crypto/rand
	p, err := json.Marshal(packet{KeyID: r.KeyURI, Wrapped: aead.Seal(nil, iv, private, nil), IV: iv, WrapType: decrypt.WrapGCM})
	if err != nil {
		return nil, fmt.Errorf("encode packet: %w", err)
	}
	return p, nil
}
