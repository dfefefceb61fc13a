// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/containers/ocicrypt/blockcipher"
	"github.com/go-jose/go-jose/v4"
)

// Limits on what is wrapped for public keys.
const (
	// maxMessage is the size of one message in bytes: 16 recipients with RSA of 8192 bits, and a layer key of maxWrapped.
	maxMessage = 48 << 10
	// maxPrivateKey is the size of a private key or ring in bytes.
	maxPrivateKey = 256 << 10
)

// message is a layer key that is encrypted for public keys. Its recipients are at most maxPackets.
type message interface {
	// protocol names the one of ocicrypt's protocols.
	protocol() string
	// suits says whether the private key is of the kind that the protocol uses.
	suits(*privateKey) bool
	// open returns the layer key's JSON. Every error means that the key does not open the message.
	open(*privateKey) ([]byte, error)
}

// addMessages reads an annotation of jwe, pkcs7 or pgp. ocicrypt writes one message for all recipients of a protocol; a
// layer that was given more recipients later has several, in a list with commas.
func (r *recipients) addMessages(protocol, value string) error {
	if len(value) > maxAnnotation {
		return fmt.Errorf("annotation %s%s is larger than %d bytes", KeysPrefix, protocol, maxAnnotation)
	}
	values := strings.SplitN(value, ",", maxPackets+1)
	if len(values) > maxPackets {
		return fmt.Errorf("annotation %s%s has more than %d messages", KeysPrefix, protocol, maxPackets)
	}
	var messages []message
	for i, v := range values {
		m, err := parseMessage(protocol, v)
		if err != nil {
			return fmt.Errorf("message %d of annotation %s%s: %w", i, KeysPrefix, protocol, err)
		}
		messages = append(messages, m)
	}
	r.messages = append(r.messages, messages...)
	return nil
}

func parseMessage(protocol, value string) (message, error) {
	data, err := decodeBase64(value)
	if err != nil {
		return nil, err
	}
	if len(data) > maxMessage {
		return nil, fmt.Errorf("larger than %d bytes", maxMessage)
	}
	switch protocol {
	case protocolJWE:
		return parseJWE(data)
	case protocolPKCS7:
		return parsePKCS7(data)
	case protocolPGP:
		return parsePGP(data)
	default:
		return nil, fmt.Errorf("protocol %.40q is not supported", protocol)
	}
}

// unwrapMessages opens a message with the first private key that does. It returns nil and the errors of all if none does.
func (k Keys) unwrapMessages(ctx context.Context, messages []message) (*blockcipher.PrivateLayerBlockCipherOptions, []error) {
	if len(messages) == 0 {
		return nil, nil
	}
	protocols := protocolsOf(messages)
	if len(k.PrivateKeys) == 0 {
		return nil, []error{noKey("layer is encrypted for %s, and this guest has no private keys for that", protocols)}
	}
	var failed []error
	suited := false
	for _, uri := range k.PrivateKeys {
		if ctx.Err() != nil {
			break
		}
		private, suits, err := k.tryPrivateKey(ctx, uri, messages)
		if private != nil {
			return private, nil
		}
		suited = suited || suits
		if err != nil {
			failed = append(failed, err)
		}
	}
	if !suited && len(failed) == 0 {
		return nil, []error{noKey("layer is encrypted for %s, and none of this guest's private keys %s is for that",
			protocols, strings.Join(k.PrivateKeys, ", "))}
	}
	return nil, failed
}

func protocolsOf(messages []message) string {
	var names []string
	for _, m := range messages {
		names = append(names, m.protocol())
	}
	return strings.Join(slices.Compact(names), ", ")
}

// tryPrivateKey opens the messages with one private key. If no message is of its kind it is of no use, which is no error.
func (k Keys) tryPrivateKey(ctx context.Context, uri string, messages []message) (_ *blockcipher.PrivateLayerBlockCipherOptions, suits bool, _ error) {
	data, err := k.get(ctx, uri)
	if err != nil {
		return nil, false, err
	}
	defer clear(data)
	key, err := parsePrivateKey(data)
	if err != nil {
		return nil, false, fmt.Errorf("private key %s %w", uri, err)
	}
	defer key.wipe()
	var tried []message
	for _, m := range messages {
		if !m.suits(key) {
			continue
		}
		tried = append(tried, m)
		plain, err := m.open(key)
		if err != nil {
			continue // what a key does not open says nothing but that, and its details help only who forges messages
		}
		private, err := parsePrivate(plain)
		clear(plain)
		if err != nil {
			return nil, true, fmt.Errorf("layer key unwrapped with %s %w", uri, err)
		}
		return private, true, nil
	}
	if tried == nil {
		return nil, false, nil
	}
	return nil, true, wrongKey("private key %s of this guest does not open what the layer is encrypted with (%s)", uri, protocolsOf(tried))
}

// privateKey is one of RSA, of an elliptic curve, or a ring of PGP's; the others are nil.
type privateKey struct {
	rsa  *rsa.PrivateKey
	ec   *ecdsa.PrivateKey
	ring openpgp.EntityList
}

// errPassphrase goes on after the name of a key, like all errors of parsePrivateKey; they quote nothing of it.
var errPassphrase = errors.New("is protected by a passphrase, which keys of a guest cannot have: store it without")

// parsePrivateKey reads what is stored at the URI of a private key. It keeps nothing of data.
func parsePrivateKey(data []byte) (*privateKey, error) {
	text := bytes.TrimLeft(data, " \t\r\n")
	switch {
	case len(data) > maxPrivateKey:
		return nil, fmt.Errorf("is larger than %d bytes", maxPrivateKey)
	case len(text) == 0:
		return nil, errors.New("is empty")
	case bytes.Contains(data, []byte("-----BEGIN PGP ")), text[0]&0x80 != 0: // the high bit starts every packet of PGP
		return parseRing(data)
	case bytes.HasPrefix(text, []byte("pkcs11:")):
		return nil, errors.New("is one of a pkcs11 token, which is not supported in this build")
	case text[0] == '{':
		return parseJWK(text)
	case bytes.Contains(data, []byte("-----BEGIN ")):
		return parsePEM(data)
	}
	return parseDER(data)
}

// CheckPrivateKey tells whether data is what may be stored at the URI of a private key. Its errors go on after the key's
// name, and quote nothing of it.
func CheckPrivateKey(data []byte) error {
	key, err := parsePrivateKey(data)
	if err != nil {
		return err
	}
	key.wipe()
	return nil
}

// parsePEM reads the first private key. A certificate beside it is passed over.
func parsePEM(data []byte) (*privateKey, error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("holds no private key in PEM")
		}
		defer clear(block.Bytes)
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
				return nil, errPassphrase
			}
			return parseDER(block.Bytes)
		}
		data = rest
	}
}

func parseDER(der []byte) (*privateKey, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return typed(key)
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return typed(key)
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return typed(key)
	}
	return nil, errors.New("is neither a key of RSA or an elliptic curve in PEM, DER or JWK nor a ring of PGP's private keys")
}

func parseJWK(data []byte) (*privateKey, error) {
	var jwk jose.JSONWebKey
	if jwk.UnmarshalJSON(data) != nil { // its own error could quote the key
		return nil, errors.New("is no JWK")
	}
	return typed(jwk.Key)
}

func typed(key any) (*privateKey, error) {
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return &privateKey{rsa: key}, nil
	case *ecdsa.PrivateKey:
		return &privateKey{ec: key}, nil
	default:
		return nil, errors.New("is not a private key of RSA or an elliptic curve")
	}
}

// wipe overwrites what of the key can be reached: the standard library keeps copies of its own in forms that cannot.
func (k *privateKey) wipe() {
	if k.rsa != nil {
		wipeInts(append(k.rsa.Primes, k.rsa.D, k.rsa.Precomputed.Dp, k.rsa.Precomputed.Dq, k.rsa.Precomputed.Qinv)...)
	}
	if k.ec != nil {
		wipeInts(k.ec.D) //nolint:staticcheck // SA1019: the field holds the key, and nothing else wipes it
	}
	wipeRing(k.ring)
	*k = privateKey{}
}

func wipeInts(ints ...*big.Int) {
	for _, i := range ints {
		if i != nil {
			clear(i.Bits())
			i.SetInt64(0)
		}
	}
}
