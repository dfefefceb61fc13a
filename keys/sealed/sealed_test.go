// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sealed

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister-cc/cloister/keys"
)

const (
	secretURI = "kbs:///default/secret/token"
	keyURI    = "kbs:///default/signing-key/owner"
)

// store is a provider with fixed content.
type store map[string]string

func (s store) Get(_ context.Context, uri string) (*keys.Secret, error) {
	v, ok := s[uri]
	if !ok {
		return nil, errors.Join(keys.ErrNotFound, errors.New(uri))
	}
	return keys.NewSecret([]byte(v)), nil
}

// newSigner returns a signing key and the provider of a guest that trusts it.
func newSigner(t testing.TB) (*ecdsa.PrivateKey, store) {
	t.Helper()
	private, public, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParsePrivateKey(private.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return key, store{secretURI: "s3cret", keyURI: string(public)}
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	key, guest := newSigner(t)
	text, err := Seal(secretURI, keyURI, key)
	if err != nil {
		t.Fatal(err)
	}
	if !Is(text) || strings.Count(text, ".") != 3 || strings.Contains(text, "s3cret") {
		t.Errorf("sealed secret %q is not sealed.HEADER.PAYLOAD.SIGNATURE", text)
	}
	got, err := Open(t.Context(), text, guest)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Bytes()) != "s3cret" {
		t.Errorf("opened %q", got.Bytes())
	}
}

// sign makes a token of any payload and header.
func sign(t testing.TB, key any, alg jose.SignatureAlgorithm, kid, payload string) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return Prefix + text
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	key, guest := newSigner(t)
	other, _ := newSigner(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, _, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	guest["kbs:///default/signing-key/text"] = "no key"
	guest["kbs:///default/signing-key/private"] = string(private.Bytes())
	const good = `{"version":"0.1.0","type":"vault","provider":"kbs","name":"` + secretURI + `"}`
	whole := sign(t, key, jose.ES256, keyURI, good)
	parts := strings.Split(whole, ".")
	changed := base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(good, "token", "other", 1)))
	for name, tc := range map[string]struct{ text, want string }{
		"no prefix":            {strings.TrimPrefix(whole, Prefix), "does not start with"},
		"nothing":              {Prefix, "parse sealed secret"},
		"cut":                  {whole[:len(whole)-40], "signature"},
		"too long":             {Prefix + strings.Repeat("A", MaxSize), "longer than"},
		"payload changed":      {strings.Join([]string{parts[0], parts[1], changed, parts[3]}, "."), ErrSignature.Error()},
		"signed by another":    {sign(t, other, jose.ES256, keyURI, good), ErrSignature.Error()},
		"other algorithm":      {sign(t, p384, jose.ES384, keyURI, good), "unexpected signature algorithm"},
		"shared secret":        {sign(t, []byte(strings.Repeat("k", 32)), jose.HS256, keyURI, good), "unexpected signature algorithm"},
		"no kid":               {sign(t, key, jose.ES256, "", good), "names no key"},
		"unknown kid":          {sign(t, key, jose.ES256, "kbs:///default/signing-key/none", good), "kbs:///default/signing-key/none"},
		"kid is no key":        {sign(t, key, jose.ES256, "kbs:///default/signing-key/text", good), "not a JSON Web Key"},
		"kid is a private key": {sign(t, key, jose.ES256, "kbs:///default/signing-key/private", good), "not a public"},
		"payload no JSON":      {sign(t, key, jose.ES256, keyURI, "x"), "parse payload"},
		"version":              {sign(t, key, jose.ES256, keyURI, strings.Replace(good, "0.1.0", "0.2.0", 1)), "version"},
		"envelope":             {sign(t, key, jose.ES256, keyURI, strings.Replace(good, "vault", "envelope", 1)), "only type"},
		"other provider":       {sign(t, key, jose.ES256, keyURI, strings.Replace(good, `"kbs"`, `"aliyun"`, 1)), "only type"},
		"name no URI":          {sign(t, key, jose.ES256, keyURI, strings.Replace(good, "kbs:///", "file:///", 1)), "does not start with"},
		"unknown secret":       {sign(t, key, jose.ES256, keyURI, strings.Replace(good, "token", "none", 1)), "kbs:///default/secret/none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(t.Context(), tc.text, guest)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error holds the secret: %v", err)
			}
		})
	}
}

// A header that brings its own key must not be believed.
func TestOpenIgnoresTheKeyOfTheHeader(t *testing.T) {
	t.Parallel()
	_, guest := newSigner(t)
	attacker, _ := newSigner(t)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: attacker},
		(&jose.SignerOptions{EmbedJWK: true}).WithHeader("kid", keyURI))
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign([]byte(`{"version":"0.1.0","type":"vault","provider":"kbs","name":"` + secretURI + `"}`))
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Prefix+text, guest); err == nil {
		t.Error("opened by the attacker's own key")
	}
}

func TestSealRefusesNames(t *testing.T) {
	t.Parallel()
	key, _ := newSigner(t)
	for _, args := range [][2]string{{"token", keyURI}, {secretURI, "owner"}} {
		if _, err := Seal(args[0], args[1], key); err == nil {
			t.Errorf("sealed %q signed by %q", args[0], args[1])
		}
	}
}

func FuzzOpen(f *testing.F) {
	key, guest := newSigner(f)
	text, err := Seal(secretURI, keyURI, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(Prefix)
	f.Add(Prefix + "e30.e30.e30")
	f.Add(strings.Replace(text, ".", "..", 1))
	f.Fuzz(func(t *testing.T, in string) {
		// The signature can be written in more than one way; what was signed cannot.
		got, err := Open(t.Context(), in, guest)
		if err == nil && (strings.Split(in, ".")[2] != strings.Split(text, ".")[2] || string(got.Bytes()) != "s3cret") {
			t.Errorf("%q opened to %q", in, got.Bytes())
		}
	})
}
