// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sealed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister-cc/cloister/keys"
)

// Seal makes the text that stands for the secret of a URI. signer signs it; kid is the URI under which the guest has
// signer's public key.
func Seal(name, kid string, signer *ecdsa.PrivateKey) (string, error) {
	for _, uri := range []string{name, kid} {
		if _, err := keys.ParseURI(uri); err != nil {
			return "", fmt.Errorf("seal secret: %w", err)
		}
	}
	data, err := json.Marshal(struct {
		payload
		Settings    struct{} `json:"provider_settings"`
		Annotations struct{} `json:"annotations"`
	}{payload: payload{Version: version, Type: vault, Provider: provider, Name: name}})
	if err != nil {
		return "", fmt.Errorf("seal secret: %w", err)
	}
	key := jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: signer, KeyID: kid}}
	s, err := jose.NewSigner(key, nil)
	if err != nil {
		return "", fmt.Errorf("seal secret: %w", err)
	}
	jws, err := s.Sign(data)
	if err != nil {
		return "", fmt.Errorf("seal secret: %w", err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("seal secret: %w", err)
	}
	return Prefix + token, nil
}

// NewKey makes a signing key: the private one, and both as JSON Web Keys.
func NewKey() (private *keys.Secret, public []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make signing key: %w", err)
	}
	whole := jose.JSONWebKey{Key: key, Algorithm: string(jose.ES256), Use: "sig"}
	secret, err := whole.MarshalJSON()
	if err != nil {
		return nil, nil, fmt.Errorf("encode signing key: %w", err)
	}
	pub := whole.Public()
	if public, err = pub.MarshalJSON(); err != nil {
		return nil, nil, fmt.Errorf("encode signing key: %w", err)
	}
	return keys.NewSecret(secret), public, nil
}

// ParsePrivateKey reads a signer's key: a private P-256 JSON Web Key.
func ParsePrivateKey(data []byte) (*ecdsa.PrivateKey, error) {
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(data, &jwk); err != nil {
		return nil, errors.New("not a JSON Web Key") // the cause may quote what the key holds
	}
	key, ok := jwk.Key.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not a private JSON Web Key of the curve P-256")
	}
	return key, nil
}
