// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package sign

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// inlineSignedBy turns a requirement's key sources into one that holds the keys themselves. All that is wrong with a key is
// found when a policy is loaded; the library would find it with the first image.
func inlineSignedBy(req requirement, keys map[string][]byte) error {
	if kind, err := req.text("keyType"); err != nil || kind != "GPGKeys" {
		return errors.New("keyType is not GPGKeys")
	}
	if _, ok := req["keyDatas"]; ok {
		return errors.New("keyDatas is a field of sigstoreSigned only")
	}
	files, err := take(req, "key", keys)
	if err != nil {
		return err
	}
	if files == nil {
		return errors.New("neither keyPath nor keyPaths nor keyData is there")
	}
	var ring []byte
	for _, file := range files {
		packets, err := keyring(file)
		if err != nil {
			return err
		}
		ring = append(ring, packets...)
	}
	return put(req, "key", [][]byte{ring})
}

// inlineSigstore is inlineSignedBy for sigstoreSigned.
func inlineSigstore(req requirement, keys map[string][]byte) error {
	for _, field := range []string{"key", "rekorPublicKey"} {
		if err := inline(req, field, keys, checkPublicKey); err != nil {
			return err
		}
	}
	for object, fields := range map[string][]string{"fulcio": {"ca"}, "pki": {"caRoots", "caIntermediates"}} {
		if _, ok := req[object]; !ok {
			continue
		}
		var inner requirement
		if err := json.Unmarshal(req[object], &inner); err != nil || inner == nil {
			return fmt.Errorf("%s is not an object", object)
		}
		for _, field := range fields {
			if err := inline(inner, field, keys, checkCertificates); err != nil {
				return fmt.Errorf("%s: %w", object, err)
			}
		}
		data, err := json.Marshal(inner)
		if err != nil {
			return fmt.Errorf("encode %s: %w", object, err)
		}
		req[object] = data
	}
	return nil
}

// inline replaces the sources of one field, if there are any. What has to be there is left to the library.
func inline(req requirement, field string, keys map[string][]byte, check func([]byte) error) error {
	values, err := take(req, field, keys)
	if err != nil || values == nil {
		return err
	}
	for _, v := range values {
		if err := check(v); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
	}
	return put(req, field, values)
}

// take removes fieldPath, fieldPaths, fieldData and fieldDatas from a requirement, of which at most one may be there,
// and returns what they stand for; nil if there is none.
func take(req requirement, field string, keys map[string][]byte) ([][]byte, error) {
	var sources []string
	for _, suffix := range []string{"Path", "Paths", "Data", "Datas"} {
		if _, ok := req[field+suffix]; ok {
			sources = append(sources, suffix)
		}
	}
	if len(sources) == 0 {
		return nil, nil
	}
	if len(sources) > 1 {
		return nil, fmt.Errorf("both %s%s and %s%s are there", field, sources[0], field, sources[1])
	}
	name := field + sources[0]
	texts, err := req.texts(name)
	if !strings.HasSuffix(name, "s") {
		texts = make([]string, 1)
		texts[0], err = req.text(name)
	}
	if err != nil {
		return nil, err
	}
	delete(req, name)
	values := make([][]byte, len(texts))
	for i, text := range texts {
		if strings.HasPrefix(sources[0], "Path") {
			data, ok := keys[text]
			if !ok {
				return nil, fmt.Errorf("%s names %.200q, which is not among the key files that were given", name, text)
			}
			values[i] = data
		} else if values[i], err = keyData(text); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(values[i]) == 0 || len(values[i]) > MaxPolicySize {
			return nil, fmt.Errorf("%s: a key is empty or larger than %d bytes", name, MaxPolicySize)
		}
	}
	return values, nil
}

// keyData reads base64, or plain PEM or armor, whose dashes are not of base64's alphabet.
func keyData(s string) ([]byte, error) {
	if plain := strings.TrimSpace(s); strings.HasPrefix(plain, "-----BEGIN ") {
		return []byte(plain + "\n"), nil
	}
	data, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, errors.New("neither base64 nor PEM")
	}
	return data, nil
}

// put sets fieldData, or fieldDatas where there are more values.
func put(req requirement, field string, values [][]byte) error {
	var v any = values
	name := field + "Datas"
	if len(values) == 1 {
		v, name = values[0], field+"Data"
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	req[name] = data
	return nil
}

func checkPublicKey(data []byte) error {
	if _, err := cryptoutils.UnmarshalPEMToPublicKey(data); err != nil {
		return errors.New("not a public key in PEM") // errors of parsers may quote what they read
	}
	return nil
}

func checkCertificates(data []byte) error {
	if !x509.NewCertPool().AppendCertsFromPEM(data) {
		return errors.New("no certificate in PEM")
	}
	return nil
}

// keyring returns the packets of OpenPGP keys, which may be armored. There is at least one key, and none of them is
// secret: a file with a secret key is the wrong one.
func keyring(data []byte) ([]byte, error) {
	if block, err := armor.Decode(bytes.NewReader(data)); err == nil {
		if data, err = io.ReadAll(block.Body); err != nil {
			return nil, errors.New("key: armor is damaged")
		}
	}
	entities, err := openpgp.ReadKeyRing(bytes.NewReader(data))
	if err != nil || len(entities) == 0 {
		return nil, errors.New("key: no OpenPGP public key")
	}
	if slices.ContainsFunc(entities, func(e *openpgp.Entity) bool { return e.PrivateKey != nil }) {
		return nil, errors.New("key: an OpenPGP secret key where a public one is expected")
	}
	return data, nil
}

// Tags of OpenPGP packets, RFC 9580 section 5.
const (
	tagSignature = 2
	tagOnePass   = 4
	tagLiteral   = 11
)

// unpack returns a signed OpenPGP message without compression. The library would unpack any amount, for keys that
// nobody trusts, too. GnuPG compresses a message as a whole; anything but a signed text in it is refused.
func unpack(message []byte) ([]byte, error) {
	p, err := packet.Read(bytes.NewReader(message))
	if err != nil {
		return nil, errors.New("not an OpenPGP message")
	}
	if c, ok := p.(*packet.Compressed); ok {
		if message, err = io.ReadAll(io.LimitReader(c.Body, MaxSignatureSize+1)); err != nil {
			return nil, errors.New("OpenPGP message: compressed data is damaged")
		}
		if len(message) > MaxSignatureSize {
			return nil, fmt.Errorf("OpenPGP message: more than %d bytes uncompressed", MaxSignatureSize)
		}
	}
	packets := packet.NewOpaqueReader(bytes.NewReader(message))
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			return message, nil
		}
		if err != nil {
			return nil, errors.New("OpenPGP message is damaged")
		}
		if p.Tag != tagSignature && p.Tag != tagOnePass && p.Tag != tagLiteral {
			return nil, fmt.Errorf("OpenPGP message has a packet with tag %d, which has no place in a signed text", p.Tag)
		}
	}
}
