// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/opencontainers/go-digest"
)

// layerKeySize is the size of a layer's own key in bytes.
const layerKeySize = 32

// LayerKey decrypts one layer. Its owner wipes it.
type LayerKey struct {
	options blockcipher.LayerBlockCipherOptions
	// unproven names the key that unwrapped this one if nothing but the layer's HMAC shows that it is the right one.
	unproven string
}

// NewLayerKey makes the key of a layer out of ocicrypt's private options (JSON), which some other protocol than that of
// Unwrap has unwrapped. The caller wipes private.
func NewLayerKey(annotations map[string]string, private []byte) (*LayerKey, error) {
	public, err := parsePublic(annotations[PublicAnnotation])
	if err != nil {
		return nil, err
	}
	options, err := parsePrivate(private)
	if err != nil {
		return nil, fmt.Errorf("unwrapped layer key %w", err)
	}
	return newLayerKey(public, options), nil
}

func newLayerKey(public *blockcipher.PublicLayerBlockCipherOptions, private *blockcipher.PrivateLayerBlockCipherOptions) *LayerKey {
	return &LayerKey{options: blockcipher.LayerBlockCipherOptions{Public: *public, Private: *private}}
}

// PlainDigest returns the digest that the layer had before it was encrypted; empty if who encrypted it did not say.
func (k *LayerKey) PlainDigest() digest.Digest { return k.options.Private.Digest }

// Wipe overwrites the key. A reader made of it goes on.
func (k *LayerKey) Wipe() {
	wipePrivate(&k.options.Private)
	k.options = blockcipher.LayerBlockCipherOptions{}
}

func wipePrivate(o *blockcipher.PrivateLayerBlockCipherOptions) {
	clear(o.SymmetricKey)
	for _, v := range o.CipherOptions {
		clear(v)
	}
}

// parsePrivate reads ocicrypt's private options. Its errors go on after "layer key". They quote nothing, which JSON's own
// could. With public keys anybody can have wrapped the options: nothing in them is trusted either.
func parsePrivate(data []byte) (*blockcipher.PrivateLayerBlockCipherOptions, error) {
	if len(data) > maxWrapped {
		return nil, fmt.Errorf("is larger than %d bytes", maxWrapped)
	}
	o := new(blockcipher.PrivateLayerBlockCipherOptions)
	if decodeJSON(data, o) != nil {
		wipePrivate(o)
		return nil, errors.New("is nothing known")
	}
	// A wrong size of the nonce panics in the cipher, and so does a digest without a colon in who asks for its algorithm.
	if len(o.SymmetricKey) != layerKeySize || len(o.CipherOptions["nonce"]) != aes.BlockSize {
		wipePrivate(o)
		return nil, fmt.Errorf("is not a key of %d and a nonce of %d bytes", layerKeySize, aes.BlockSize)
	}
	if o.Digest != "" && o.Digest.Validate() != nil {
		wipePrivate(o)
		return nil, errors.New("has a digest that is none")
	}
	return o, nil
}

// parseUnproven reads private options that nothing authenticates. If they are none it returns a random key, which fails
// where a wrong one does, at the layer's HMAC: who damages them bit by bit and sees which damage is found early reads the
// key out of the answers. Nonce and digest, which can be read so, are no secrets.
func parseUnproven(data []byte) (*blockcipher.PrivateLayerBlockCipherOptions, error) {
	o, err := parsePrivate(data)
	if err == nil && bytes.Contains(data, base64.StdEncoding.AppendEncode([]byte(`"`), o.SymmetricKey)) {
		return o, nil
	}
	if err == nil { // another spelling of the same key is damage, too
		wipePrivate(o)
	}
	random := make([]byte, layerKeySize+aes.BlockSize)
	if _, err := rand.Read(random); err != nil {
		return nil, fmt.Errorf("make a random key: %w", err)
	}
	return &blockcipher.PrivateLayerBlockCipherOptions{
		SymmetricKey:  random[:layerKeySize:layerKeySize],
		CipherOptions: map[string][]byte{"nonce": random[layerKeySize:]},
	}, nil
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

// Reader returns the plaintext of an encrypted layer. It returns io.EOF only after r has and the HMAC over all of it
// matches; else ErrUnauthentic, or r's own error. Where the key was wrapped with A256CTR the error of an HMAC that does
// not match is ErrWrongKey, too: nothing tells the one from the other.
//
// The format is ocicrypt's AES_256_CTR_HMAC_SHA256: AES-256 in counter mode, and an HMAC of the ciphertext with the same key.
func (k *LayerKey) Reader(r io.Reader) (io.Reader, error) {
	private := k.options.Private
	block, err := aes.NewCipher(private.SymmetricKey)
	if err != nil {
		return nil, fmt.Errorf("set up layer cipher: %w", err)
	}
	nonce := private.CipherOptions["nonce"]
	if len(private.SymmetricKey) != layerKeySize || len(nonce) != block.BlockSize() || len(k.options.Public.Hmac) != sha256.Size {
		return nil, errors.New("set up layer cipher: key, nonce or HMAC of another size")
	}
	forged := ErrUnauthentic
	if k.unproven != "" {
		forged = &keyError{
			fmt.Sprintf("encrypted layer does not match its HMAC: key %s is not the one that it was encrypted with, or it was changed", k.unproven),
			[]error{ErrUnauthentic, ErrWrongKey},
		}
	}
	return &reader{
		r: r, stream: cipher.NewCTR(block, nonce), hmac: hmac.New(sha256.New, private.SymmetricKey), want: k.options.Public.Hmac,
		forged: forged, next: make([]byte, 0, heldBack), spare: make([]byte, 0, heldBack),
	}, nil
}

// heldBack is how many bytes a reader has of what follows those that it gives away. So a layer that was cut or forged
// fails before its last bytes are seen, and a small one before any.
const heldBack = 16 << 10

// reader is what ocicrypt's own is, but for the buffers that it makes for each Read.
type reader struct {
	r      io.Reader
	stream cipher.Stream
	hmac   hash.Hash // of the ciphertext so far
	want   []byte
	forged error

	now, next, spare []byte // ciphertext; spare is the buffer of now
	end              error  // of r; io.EOF if the HMAC matches, too
}

// Read implements io.Reader. It decrypts from one buffer to the other, in place of copying.
func (r *reader) Read(p []byte) (int, error) {
	for len(r.now) == 0 {
		if err := r.advance(); err != nil {
			return 0, err
		}
	}
	n := min(len(p), len(r.now))
	r.stream.XORKeyStream(p[:n], r.now[:n])
	r.now = r.now[n:]
	return n, nil
}

// advance lets the next piece be given away if the one after it is here, or the layer has ended as it should.
func (r *reader) advance() error {
	r.now, r.next, r.spare = r.next, r.spare[:0], r.next
	if r.end == nil {
		r.fill()
	}
	switch {
	case r.end == nil:
		return nil
	case r.end != io.EOF: //nolint:errorlint // one that is wrapped is no verified end
		r.now, r.next = nil, nil
		return r.end
	case len(r.now)+len(r.next) == 0:
		return io.EOF
	}
	return nil
}

// fill reads the piece after the next one, and judges the layer at its end.
func (r *reader) fill() {
	for r.end == nil && len(r.next) < cap(r.next) {
		var n int
		n, r.end = r.r.Read(r.next[len(r.next):cap(r.next)])
		r.next = r.next[:len(r.next)+n]
	}
	r.hmac.Write(r.next)
	if r.end != io.EOF { //nolint:errorlint // one that is wrapped is no verified end
		return
	}
	if !hmac.Equal(r.hmac.Sum(nil), r.want) {
		r.end = r.forged
	}
}
