// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// pkcs7Message is the part of EnvelopedData (RFC 2315, section 10) that decryption needs.
//
// The library that ocicrypt uses is not used here: it panics on content of a wrong length, and its AES-CBC and its errors
// about RSA's padding let who sends messages for decryption read others.
type pkcs7Message struct {
	keys    [][]byte // the content's key, encrypted with RSA for each recipient
	keySize int
	nonce   []byte
	content []byte
}

// Object identifiers of PKCS #7.
const (
	oidEnvelopedData = "1.2.840.113549.1.7.3"
	oidRSA           = "1.2.840.113549.1.1.1"
	oidAES128GCM     = "2.16.840.1.101.3.4.1.6"
	oidAES256GCM     = "2.16.840.1.101.3.4.1.46"
)

// The ASN.1 of a message; names as in the RFC.
type (
	contentInfo struct {
		ContentType asn1.ObjectIdentifier
		Content     asn1.RawValue `asn1:"explicit,tag:0"`
	}
	envelopedData struct {
		Version              int
		RecipientInfos       []recipientInfo `asn1:"set"`
		EncryptedContentInfo struct {
			ContentType                asn1.ObjectIdentifier
			ContentEncryptionAlgorithm pkix.AlgorithmIdentifier
			EncryptedContent           asn1.RawValue `asn1:"tag:0"`
		}
	}
	recipientInfo struct {
		Version               int
		IssuerAndSerialNumber struct {
			Issuer       asn1.RawValue
			SerialNumber *big.Int
		}
		KeyEncryptionAlgorithm pkix.AlgorithmIdentifier
		EncryptedKey           []byte
	}
	// gcmParameters are those of RFC 5084 as ocicrypt's library writes them: with a tag of its own for the nonce, and
	// once more in a sequence.
	gcmParameters struct {
		Nonce  []byte `asn1:"tag:4"`
		ICVLen int
	}
)

// parsePKCS7 reads a message as ocicrypt writes it: DER, RSA with PKCS #1 v1.5, AES-GCM.
func parsePKCS7(data []byte) (message, error) {
	var info contentInfo
	if err := unmarshalDER(data, &info); err != nil {
		return nil, err
	}
	if info.ContentType.String() != oidEnvelopedData {
		return nil, errors.New("not the enveloped data of PKCS #7")
	}
	var enveloped envelopedData
	if err := unmarshalDER(info.Content.Bytes, &enveloped); err != nil {
		return nil, err
	}
	if n := len(enveloped.RecipientInfos); n == 0 || n > maxPackets {
		return nil, fmt.Errorf("%d recipients are not between 1 and %d", n, maxPackets)
	}
	var m pkcs7Message
	for _, r := range enveloped.RecipientInfos {
		if r.KeyEncryptionAlgorithm.Algorithm.String() != oidRSA {
			return nil, fmt.Errorf("key encryption %.60s is not that of RSA (PKCS #1 v1.5)", r.KeyEncryptionAlgorithm.Algorithm)
		}
		m.keys = append(m.keys, r.EncryptedKey)
	}
	if err := m.cipher(enveloped.EncryptedContentInfo.ContentEncryptionAlgorithm); err != nil {
		return nil, err
	}
	m.content = enveloped.EncryptedContentInfo.EncryptedContent.Bytes
	if enveloped.EncryptedContentInfo.EncryptedContent.IsCompound {
		var content []byte
		if err := unmarshalDER(m.content, &content); err != nil {
			return nil, err
		}
		m.content = content
	}
	return m, nil
}

// cipher reads the content's cipher. One that does not authenticate is refused.
func (m *pkcs7Message) cipher(algorithm pkix.AlgorithmIdentifier) error {
	switch algorithm.Algorithm.String() {
	case oidAES128GCM:
		m.keySize = 16
	case oidAES256GCM:
		m.keySize = 32
	default:
		return fmt.Errorf("content cipher %.60s is not AES-GCM", algorithm.Algorithm)
	}
	var p gcmParameters
	if err := unmarshalDER(algorithm.Parameters.Bytes, &p); err != nil {
		return err
	}
	if len(p.Nonce) != 12 || p.ICVLen != 16 {
		return fmt.Errorf("AES-GCM with a nonce of %d and a tag of %d bytes, want 12 and 16", len(p.Nonce), p.ICVLen)
	}
	m.nonce = p.Nonce
	return nil
}

// unmarshalDER reads one value with nothing after it.
func unmarshalDER(data []byte, into any) error {
	rest, err := asn1.Unmarshal(data, into)
	if err != nil {
		return fmt.Errorf("parse DER: %w", err)
	}
	if len(rest) > 0 {
		return errors.New("parse DER: data after the value")
	}
	return nil
}

func (pkcs7Message) protocol() string         { return protocolPKCS7 }
func (pkcs7Message) suits(k *privateKey) bool { return k.rsa != nil }

// open tries all recipients, so that the private key's certificate is not needed to find its own. What RSA's padding
// looks like must not show, not even in time: with a wrong one the content is decrypted with a random key.
func (m pkcs7Message) open(k *privateKey) ([]byte, error) {
	key := make([]byte, m.keySize)
	defer clear(key)
	for _, encrypted := range m.keys {
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("make a random key: %w", err)
		}
		if rsa.DecryptPKCS1v15SessionKey(rand.Reader, k.rsa, encrypted, key) != nil { //nolint:staticcheck // SA1019: what the format has
			continue // for a key of another size
		}
		if plain, err := openGCM(key, m.nonce, m.content); err == nil {
			return plain, nil
		}
	}
	return nil, errors.New("key does not open the PKCS #7 message")
}

func openGCM(key, nonce, content []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("set up AES: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("set up GCM: %w", err)
	}
	plain, err := aead.Open(nil, nonce, content, nil)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return plain, nil
}
