// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/opencontainers/go-digest"
)

// Annotations of an encrypted layer's descriptor.
const (
	// KeysPrefix starts every annotation that holds wrapped layer keys; the protocol follows.
	KeysPrefix = "org.opencontainers.image.enc.keys."
	// KeysAnnotation holds the layer key wrapped for a Confidential Containers guest.
	KeysAnnotation = KeysPrefix + "provider.attestation-agent"
	// PublicAnnotation holds the public parameters of the layer cipher.
	PublicAnnotation = "org.opencontainers.image.enc.pubopts"
)

// Errors that callers tell apart.
var (
	// ErrNoKey means that the guest has none of the keys that unwrap the layer's key. A KeyFunc returns it, too.
	ErrNoKey = errors.New("no such key")
	// ErrWrongKey means that the guest has a key of the right name, and that it does not unwrap the layer's key.
	ErrWrongKey = errors.New("wrong key")
	// ErrUnauthentic means that the layer is not what was encrypted: its HMAC does not match.
	ErrUnauthentic = errors.New("encrypted layer does not match its HMAC: it was changed after encryption")
)

// KeyFunc returns the key of a URI; the caller owns the bytes and wipes them. ErrNoKey says that there is no such key,
// any other error that it could not be told.
type KeyFunc func(ctx context.Context, uri string) ([]byte, error)

// keyError is an error whose text is complete without that of its kind.
type keyError struct {
	text string
	kind error
}

func (e *keyError) Error() string { return e.text }
func (e *keyError) Unwrap() error { return e.kind }

// LayerKey decrypts one layer. Its owner wipes it.
type LayerKey struct {
	options blockcipher.LayerBlockCipherOptions
}

// Unwrap finds the layer's key: the first recipient whose key the guest has and whose packet opens. If there is none
// the error is ErrNoKey where the guest has no key of any recipient, and ErrWrongKey where one does not fit.
func Unwrap(ctx context.Context, annotations map[string]string, keys KeyFunc) (*LayerKey, error) {
	value, ok := annotations[KeysAnnotation]
	if !ok {
		return nil, unsupportedScheme(annotations)
	}
	packets, err := parsePackets(value)
	if err != nil {
		return nil, err
	}
	public, err := parsePublic(annotations[PublicAnnotation])
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, p := range packets {
		private, err := unwrapPacket(ctx, p, keys)
		if err == nil {
			return &LayerKey{blockcipher.LayerBlockCipherOptions{Public: *public, Private: *private}}, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

// NewLayerKey makes the key of a layer out of ocicrypt's private options (JSON), which some other protocol than that of
// Unwrap has unwrapped. The caller wipes private.
func NewLayerKey(annotations map[string]string, private []byte) (*LayerKey, error) {
	public, err := parsePublic(annotations[PublicAnnotation])
	if err != nil {
		return nil, err
	}
	options := new(blockcipher.PrivateLayerBlockCipherOptions)
	if decodeJSON(private, options) != nil { // JSON's own error could quote the key
		return nil, errors.New("unwrapped layer key is nothing known")
	}
	if !validPrivate(options) {
		clear(options.SymmetricKey)
		return nil, fmt.Errorf("unwrapped layer key is not a key of 32 and a nonce of %d bytes", aes.BlockSize)
	}
	return &LayerKey{blockcipher.LayerBlockCipherOptions{Public: *public, Private: *options}}, nil
}

// KeyURIs returns the URIs of the keys that a layer was encrypted for, none if there is no KeysAnnotation.
func KeyURIs(annotations map[string]string) ([]string, error) {
	value, ok := annotations[KeysAnnotation]
	if !ok {
		return nil, nil
	}
	packets, err := parsePackets(value)
	if err != nil {
		return nil, err
	}
	uris := make([]string, len(packets))
	for i, p := range packets {
		uris[i] = p.KeyURI
	}
	return uris, nil
}

// PlainDigest returns the digest that the layer had before it was encrypted; empty if who encrypted it did not say.
func (k *LayerKey) PlainDigest() digest.Digest { return k.options.Private.Digest }

func validPrivate(o *blockcipher.PrivateLayerBlockCipherOptions) bool {
	return len(o.SymmetricKey) == 32 && len(o.CipherOptions["nonce"]) == aes.BlockSize
}

// unsupportedScheme says for whom a layer was encrypted that was not encrypted for us.
func unsupportedScheme(annotations map[string]string) error {
	var schemes []string
	for name := range annotations {
		if scheme, ok := strings.CutPrefix(name, KeysPrefix); ok {
			schemes = append(schemes, fmt.Sprintf("%.40q", scheme))
		}
	}
	if len(schemes) == 0 {
		return fmt.Errorf("encrypted layer has no annotation %s", KeysAnnotation)
	}
	slices.Sort(schemes)
	return fmt.Errorf("layer is encrypted for %s only; encrypt it for provider.attestation-agent with a kbs:/// key",
		strings.Join(schemes[:min(len(schemes), 8)], ", "))
}

func unwrapPacket(ctx context.Context, p packet, keys KeyFunc) (*blockcipher.PrivateLayerBlockCipherOptions, error) {
	key, err := keys(ctx, p.KeyURI)
	defer func() { clear(key) }()
	if errors.Is(err, ErrNoKey) || err == nil && len(key) == 0 {
		return nil, &keyError{fmt.Sprintf("no key %s in this guest", p.KeyURI), ErrNoKey}
	}
	if err != nil {
		return nil, fmt.Errorf("get key %s: %w", p.KeyURI, err)
	}
	if len(key) != 32 {
		return nil, &keyError{fmt.Sprintf("key %s has %d bytes, a layer key is wrapped with 32", p.KeyURI, len(key)), ErrWrongKey}
	}
	plain, err := p.open(key)
	defer func() { clear(plain) }()
	if err != nil {
		return nil, err
	}
	private := new(blockcipher.PrivateLayerBlockCipherOptions)
	if err := decodeJSON(plain, private); err != nil {
		// JSON's own error could quote the plaintext.
		return nil, &keyError{fmt.Sprintf("key %s does not unwrap the layer's key to anything known", p.KeyURI), ErrWrongKey}
	}
	if !validPrivate(private) {
		clear(private.SymmetricKey)
		return nil, fmt.Errorf("layer key unwrapped with %s is not a key of 32 and a nonce of %d bytes", p.KeyURI, aes.BlockSize)
	}
	return private, nil
}

// open decrypts the packet's wrapped key.
func (p packet) open(key []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("unwrap layer key: %w", err)
	}
	if p.WrapType == wrapCTR {
		plain := make([]byte, len(p.Wrapped))
		cipher.NewCTR(block, p.IV).XORKeyStream(plain, p.Wrapped)
		return plain, nil
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("unwrap layer key: %w", err)
	}
	plain, err := aead.Open(nil, p.IV, p.Wrapped, nil)
	if err != nil {
		return nil, &keyError{fmt.Sprintf("key %s of this guest is not the one that the layer was encrypted with", p.KeyURI), ErrWrongKey}
	}
	return plain, nil
}

// parsePublic reads the value of PublicAnnotation. Options of the cipher are refused there: ocicrypt would prefer a
// nonce from the public annotation, which nothing authenticates, to the one that is wrapped with the key.
func parsePublic(annotation string) (*blockcipher.PublicLayerBlockCipherOptions, error) {
	if annotation == "" {
		return nil, fmt.Errorf("encrypted layer has no annotation %s", PublicAnnotation)
	}
	if len(annotation) > maxAnnotation {
		return nil, fmt.Errorf("annotation %s is larger than %d bytes", PublicAnnotation, maxAnnotation)
	}
	data, err := decodeBase64(annotation)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", PublicAnnotation, err)
	}
	public := new(blockcipher.PublicLayerBlockCipherOptions)
	if err := decodeJSON(data, public); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", PublicAnnotation, err)
	}
	if public.CipherType != blockcipher.AES256CTR {
		return nil, fmt.Errorf("layer cipher %.40q is not %s", public.CipherType, blockcipher.AES256CTR)
	}
	if len(public.Hmac) != 32 || len(public.CipherOptions) != 0 {
		return nil, fmt.Errorf("annotation %s: HMAC of %d bytes (want 32), %d cipher options (want none)",
			PublicAnnotation, len(public.Hmac), len(public.CipherOptions))
	}
	return public, nil
}

// Wipe overwrites the key. A reader made of it goes on.
func (k *LayerKey) Wipe() {
	clear(k.options.Private.SymmetricKey)
	clear(k.options.Private.CipherOptions["nonce"])
	k.options = blockcipher.LayerBlockCipherOptions{}
}

// Reader returns the plaintext of an encrypted layer. It returns io.EOF only after r has and the HMAC over all of it
// matches; else ErrUnauthentic, or r's own error.
func (k *LayerKey) Reader(r io.Reader) (io.Reader, error) {
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return nil, fmt.Errorf("set up layer cipher: %w", err)
	}
	src := &source{r: r}
	plain, _, err := handler.Decrypt(src, k.options)
	if err != nil {
		return nil, fmt.Errorf("set up layer cipher: %w", err)
	}
	return &reader{plain: plain, src: src}, nil
}

// source remembers how the ciphertext ended, because the cipher's own errors have no type.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil {
		s.err = err
	}
	return n, err
}

type reader struct {
	plain io.Reader
	src   *source
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.plain.Read(p)
	switch {
	case err == nil:
		return n, nil
	case r.src.err != nil && !errors.Is(r.src.err, io.EOF):
		return n, r.src.err
	case errors.Is(err, io.EOF) && r.src.err != nil:
		return n, io.EOF
	default:
		return n, ErrUnauthentic
	}
}
