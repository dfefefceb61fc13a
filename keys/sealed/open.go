// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sealed

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister-cc/cloister/keys"
)

// Prefix starts every sealed secret.
const Prefix = "sealed."

// MaxSize bounds the text of a sealed secret, in bytes.
const MaxSize = 16 << 10

// What a payload has to say (SEALED_SECRET.md of Confidential Containers' guest components).
const (
	version  = "0.1.0"
	vault    = "vault"
	provider = "kbs"
)

// ErrSignature means that a sealed secret was not signed with the key that it names.
var ErrSignature = errors.New("the signature of the sealed secret does not verify")

// payload is the signed part. Other fields (settings of other providers, annotations) say nothing to a guest.
type payload struct {
	Version  string `json:"version"`
	Type     string `json:"type"`
	Provider string `json:"provider"`
	Name     string `json:"name"`
}

// Is says whether a text claims to be a sealed secret.
func Is(text string) bool { return strings.HasPrefix(text, Prefix) }

// Open verifies a sealed secret and returns what it stands for; the caller wipes it. Both the public key and the secret
// come from the provider. A key or secret that it does not have is keys.ErrNotFound, with the URI; a text that was
// changed or signed by somebody else is ErrSignature.
func Open(ctx context.Context, text string, provider keys.Provider) (*keys.Secret, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("sealed secret is longer than %d bytes", MaxSize)
	}
	token, ok := strings.CutPrefix(text, Prefix)
	if !ok {
		return nil, fmt.Errorf("not a sealed secret: it does not start with %q", Prefix)
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, fmt.Errorf("parse sealed secret: %w", err)
	}
	key, err := signingKey(ctx, jws.Signatures[0].Protected.KeyID, provider)
	if err != nil {
		return nil, err
	}
	data, err := jws.Verify(key)
	if err != nil {
		return nil, ErrSignature // the library's text says no more
	}
	name, err := parsePayload(data)
	if err != nil {
		return nil, fmt.Errorf("sealed secret: %w", err)
	}
	secret, err := provider.Get(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("sealed secret: %w", err)
	}
	return secret, nil
}

// signingKey gets the public key that the header names. Keys that a header brings along are never used.
func signingKey(ctx context.Context, kid string, provider keys.Provider) (*ecdsa.PublicKey, error) {
	if kid == "" {
		return nil, errors.New("sealed secret names no key (kid) that signed it")
	}
	data, err := provider.Get(ctx, kid)
	if err != nil {
		return nil, fmt.Errorf("signing key of sealed secret: %w", err)
	}
	defer data.Wipe()
	key, err := ParsePublicKey(data.Bytes())
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", kid, err)
	}
	return key, nil
}

// ParsePublicKey reads the public key of a signer: a P-256 JSON Web Key without a private part, which has no place in a
// guest.
func ParsePublicKey(data []byte) (*ecdsa.PublicKey, error) {
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(data, &jwk); err != nil {
		return nil, errors.New("not a JSON Web Key") // the cause may quote what a private key holds
	}
	key, ok := jwk.Key.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not a public JSON Web Key of the curve P-256")
	}
	if jwk.Algorithm != "" && jwk.Algorithm != string(jose.ES256) {
		return nil, fmt.Errorf("a key for %q, not for ES256", jwk.Algorithm)
	}
	return key, nil
}

func parsePayload(data []byte) (name string, err error) {
	var p payload
	if err := json.Unmarshal(data, &p); err != nil {
		return "", fmt.Errorf("parse payload: %w", err)
	}
	if p.Version != version {
		return "", fmt.Errorf("payload version %q, only %q is supported", p.Version, version)
	}
	if p.Type != vault || p.Provider != provider {
		return "", fmt.Errorf("payload of type %q and provider %q, only type %q of provider %q is supported", p.Type, p.Provider, vault, provider)
	}
	if _, err := keys.ParseURI(p.Name); err != nil {
		return "", err
	}
	return p.Name, nil
}
