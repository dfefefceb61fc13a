// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package signtest signs images for tests as cosign does with a key pair: ECDSA on P-256 over a payload in the simple
// signing format, beside the image in its registry. Nothing that ships imports it.
package signtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// MediaType is that of a signature's payload.
const MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"

// Signer is a key pair.
type Signer struct{ key *ecdsa.PrivateKey }

// New makes a key pair.
func New() (*Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return &Signer{key}, nil
}

// PublicKey returns the public key in PEM, as a policy wants it.
func (s *Signer) PublicKey() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// Policy returns a policy.json that allows images with a signature of this key for their own reference or repository.
func (s *Signer) Policy() ([]byte, error) {
	public, err := s.PublicKey()
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"default": []any{map[string]any{
		"type": "sigstoreSigned", "keyData": base64.StdEncoding.EncodeToString(public),
		"signedIdentity": map[string]string{"type": "matchRepository"},
	}}})
}

// Sign returns the payload and the annotations of a signature on the manifest of digest d, for an identity of the form
// host/repository or host/repository:tag.
func (s *Signer) Sign(identity string, d digest.Digest) (payload []byte, annotations map[string]string, err error) {
	payload, err = json.Marshal(map[string]any{
		"critical": map[string]any{
			"type":     "cosign container image signature",
			"image":    map[string]string{"docker-manifest-digest": d.String()},
			"identity": map[string]string{"docker-reference": identity},
		},
		"optional": nil,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("encode the payload: %w", err)
	}
	sum := sha256.Sum256(payload)
	signature, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	return payload, map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signature)}, nil
}

// Tag returns the tag under which a registry has the signatures of an image.
func Tag(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) + ".sig" }
