// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits on annotations.
const (
	// maxAnnotation is the size of one annotation in bytes.
	maxAnnotation = 128 << 10
	// maxPackets is the number of recipients of a layer.
	maxPackets = 16
	// maxKeyURI is the size of a key's URI in bytes.
	maxKeyURI = 1024
	// maxWrapped is the size of a wrapped layer key in bytes.
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

// parsePackets reads the value of KeysAnnotation. One packet that is not well formed makes all of it an error.
func parsePackets(annotation string) ([]packet, error) {
	if len(annotation) > maxAnnotation {
		return nil, fmt.Errorf("annotation %s is larger than %d bytes", KeysAnnotation, maxAnnotation)
	}
	values := strings.SplitN(annotation, ",", maxPackets+1)
	if len(values) > maxPackets {
		return nil, fmt.Errorf("annotation %s has more than %d packets", KeysAnnotation, maxPackets)
	}
	packets := make([]packet, 0, len(values))
	for i, v := range values {
		p, err := parsePacket(v)
		if err != nil {
			return nil, fmt.Errorf("packet %d of annotation %s: %w", i, KeysAnnotation, err)
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
	if w.Version != "" && w.Version != "0.1.0" {
		return packet{}, fmt.Errorf("version %q is not 0.1.0", w.Version)
	}
	if w.Provider != "" && w.Provider != "kbs" {
		return packet{}, fmt.Errorf("key provider %q is not supported, only kbs is", w.Provider)
	}
	if err := checkKeyURI(w.KeyID); err != nil {
		return packet{}, err
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
		return fmt.Errorf("wrap_type %q is neither %s nor %s", p.WrapType, WrapGCM, wrapCTR)
	}
	if len(p.IV) != ivSize {
		return fmt.Errorf("iv of %d bytes, %s has %d", len(p.IV), p.WrapType, ivSize)
	}
	if len(p.Wrapped) <= minimum || len(p.Wrapped) > maxWrapped {
		return fmt.Errorf("wrapped_data of %d bytes is not between %d and %d", len(p.Wrapped), minimum+1, maxWrapped)
	}
	return nil
}

// checkKeyURI keeps what is certainly no key URI away from key providers and logs; providers parse it themselves.
func checkKeyURI(uri string) error {
	if !strings.HasPrefix(uri, "kbs:///") || len(uri) > maxKeyURI {
		return fmt.Errorf("kid %.100q is not a key URI (kbs:///repository/type/tag)", uri)
	}
	for i := range len(uri) {
		if uri[i] <= ' ' || uri[i] > '~' {
			return fmt.Errorf("kid %.100q is not a key URI (kbs:///repository/type/tag)", uri)
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
