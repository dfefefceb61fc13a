// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containers/ocicrypt/blockcipher"
)

// Limits on annotations.
const (
	// maxAnnotation is the size of one annotation in bytes.
	maxAnnotation = 128 << 10
	// maxProtocols is the number of a layer's annotations with wrapped keys.
	maxProtocols = 16
	// maxPackets is the number of packets of a layer, and of the recipients of each other protocol.
	maxPackets = 16
	// maxKeyURI is the size of a key's URI in bytes.
	maxKeyURI = 1024
	// maxWrapped is the size of a wrapped layer key in bytes, and of what is wrapped.
	maxWrapped = 8 << 10
)

// Wrap types: how a packet's layer key is encrypted.
const (
	// WrapGCM is AES-256-GCM: 12 bytes of IV, 16 bytes of tag after the ciphertext, no additional data.
	WrapGCM = "A256GCM"
	// wrapCTR is AES-256-CTR with 16 bytes of IV. It does not authenticate the layer key.
	wrapCTR = "A256CTR"
)

// packet is the wrapped key of one layer for one recipient.
type packet struct {
	// KeyURI names the key that unwraps.
	KeyURI string
	// Wrapped is the encrypted layer key.
	Wrapped []byte
	// IV is the initialisation vector, 12 or 16 bytes as WrapType wants.
	IV []byte
	// WrapType is WrapGCM or wrapCTR.
	WrapType string
	// unsupported is not nil if the packet is for another kind of guest, and nothing else is set then.
	unsupported error
}

// wirePacket is the JSON of both versions: version 2 adds the fields after wrap_type.
type wirePacket struct {
	KeyID            string          `json:"kid"`
	Wrapped          string          `json:"wrapped_data"`
	IV               string          `json:"iv"`
	WrapType         string          `json:"wrap_type"`
	Version          string          `json:"version"`
	Provider         string          `json:"provider"`
	ProviderSettings json.RawMessage `json:"provider_settings"`
	Annotations      json.RawMessage `json:"annotations"`
}

// addPackets adds those of an annotation. As in Confidential Containers, the name of the provider after KeysPrefix does
// not matter: who encrypts chooses it. All annotations together have at most maxPackets.
func (r *recipients) addPackets(name, value string) error {
	packets, err := parsePackets(name, value)
	if err != nil && name != KeysAnnotation {
		return fmt.Errorf("layer is encrypted for %.60q, which holds no packets of Confidential Containers: %w", strings.TrimPrefix(name, KeysPrefix), err)
	}
	if err != nil {
		return err
	}
	if len(r.packets)+len(packets) > maxPackets {
		return fmt.Errorf("layer has more than %d packets of wrapped keys", maxPackets)
	}
	r.packets = append(r.packets, packets...)
	return nil
}

// parsePackets reads the value of an annotation with packets. One packet that is not well formed makes all of it an
// error; one that is for others does not.
func parsePackets(name, annotation string) ([]packet, error) {
	if len(annotation) > maxAnnotation {
		return nil, fmt.Errorf("annotation %.100s is larger than %d bytes", name, maxAnnotation)
	}
	values := strings.SplitN(annotation, ",", maxPackets+1)
	if len(values) > maxPackets {
		return nil, fmt.Errorf("annotation %.100s has more than %d packets", name, maxPackets)
	}
	packets := make([]packet, 0, len(values))
	for i, v := range values {
		p, err := parsePacket(v)
		if err != nil {
			return nil, fmt.Errorf("packet %d of annotation %.100s: %w", i, name, err)
		}
		packets = append(packets, p)
	}
	return packets, nil
}

func parsePacket(value string) (packet, error) {
	data, err := decodeBase64(value)
	if err != nil {
		return packet{}, err
	}
	var w wirePacket
	if err := decodeJSON(data, &w); err != nil {
		return packet{}, err
	}
	switch {
	case w.Version != "" && w.Version != "0.1.0":
		return packet{unsupported: fmt.Errorf("layer key in a packet of version %.40q, which is not 0.1.0", w.Version)}, nil
	case w.Provider != "" && w.Provider != "kbs":
		return packet{unsupported: fmt.Errorf("layer key of key provider %.40q, which is not supported, only kbs is", w.Provider)}, nil
	}
	if err := checkKeyURI(w.KeyID); err != nil {
		return packet{}, fmt.Errorf("kid %w", err)
	}
	p := packet{KeyURI: w.KeyID, WrapType: w.WrapType}
	if p.Wrapped, err = decodeBase64(w.Wrapped); err != nil {
		return packet{}, fmt.Errorf("wrapped_data: %w", err)
	}
	if p.IV, err = decodeBase64(w.IV); err != nil {
		return packet{}, fmt.Errorf("iv: %w", err)
	}
	return p, p.check()
}

func (p packet) check() error {
	ivSize, minimum := 0, 0
	switch p.WrapType {
	case WrapGCM:
		ivSize, minimum = 12, 16
	case wrapCTR:
		ivSize = 16
	default:
		return fmt.Errorf("wrap_type %.40q is neither %s nor %s", p.WrapType, WrapGCM, wrapCTR)
	}
	if len(p.IV) != ivSize {
		return fmt.Errorf("iv of %d bytes, %s has %d", len(p.IV), p.WrapType, ivSize)
	}
	if len(p.Wrapped) <= minimum || len(p.Wrapped) > maxWrapped {
		return fmt.Errorf("wrapped_data of %d bytes is not between %d and %d", len(p.Wrapped), minimum+1, maxWrapped)
	}
	return nil
}

// unwrapPacket opens a packet with the guest's key.
func (k Keys) unwrapPacket(ctx context.Context, p packet) (*blockcipher.PrivateLayerBlockCipherOptions, error) {
	if p.unsupported != nil {
		return nil, p.unsupported
	}
	key, err := k.get(ctx, p.KeyURI)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if len(key) != 32 {
		return nil, wrongKey("key %s has %d bytes, a layer key is wrapped with 32", p.KeyURI, len(key))
	}
	plain, err := p.open(key)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	if p.WrapType == wrapCTR {
		return parseUnproven(plain)
	}
	private, err := parsePrivate(plain)
	if err != nil {
		return nil, fmt.Errorf("layer key unwrapped with %s %w", p.KeyURI, err)
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
		return nil, wrongKey("key %s of this guest is not the one that the layer was encrypted with", p.KeyURI)
	}
	return plain, nil
}

// checkKeyURI keeps what is certainly no key URI away from key providers and logs; providers parse it themselves.
func checkKeyURI(uri string) error {
	if !strings.HasPrefix(uri, "kbs:///") || len(uri) > maxKeyURI {
		return fmt.Errorf("%.100q is not a key URI (kbs:///repository/type/tag)", uri)
	}
	for i := range len(uri) {
		if uri[i] <= ' ' || uri[i] > '~' {
			return fmt.Errorf("%.100q is not a key URI (kbs:///repository/type/tag)", uri)
		}
	}
	return nil
}

// decodeBase64 decodes padded standard base64 that has exactly one spelling: Go's decoder alone would skip line ends.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line end in base64")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("decode base64: %w", err)
	}
	return b, nil
}

// decodeJSON decodes one JSON object without unknown fields and with nothing after it.
func decodeJSON(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("parse JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("parse JSON: data after the object")
	}
	return nil
}
