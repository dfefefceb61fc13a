// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/image/decrypt"
)

// with returns annotations with one changed.
func with(annotations map[string]string, name, value string) map[string]string {
	out := maps.Clone(annotations)
	out[name] = value
	return out
}

var protocols = map[string]string{
	"jwe:alice": "jwe", "jwe:carol": "jwe", "pkcs7:alice": "pkcs7", "pgp:erin": "pgp", "pgp:frank": "pgp",
	packetURI: "provider.attestation-agent",
}

func guestOf(t testing.TB, spec string) decrypt.Keys {
	t.Helper()
	if strings.HasPrefix(spec, "kbs:") {
		return packetGuest(spec)
	}
	_, name, _ := strings.Cut(spec, ":")
	return guest(t, name)
}

// A damaged message opens to the layer's key or not at all.
func TestDamagedAnnotations(t *testing.T) {
	for spec, protocol := range protocols {
		t.Run(spec, func(t *testing.T) {
			l := encrypt(t, "x", imagecrypt.Gzip, spec)
			keys := guestOf(t, spec)
			name := decrypt.KeysPrefix + protocol
			data, err := base64.StdEncoding.DecodeString(l.desc.Annotations[name])
			check(t, err)
			try := func(what string, data []byte, always bool) {
				t.Helper()
				got, err := read(t.Context(), keys, with(l.desc.Annotations, name, base64.StdEncoding.EncodeToString(data)), l.blob)
				if err == nil && (always || !bytes.Equal(got, l.plain)) {
					t.Errorf("%s: read %d bytes", what, len(got))
				}
				if err != nil && errors.Is(err, decrypt.ErrUnauthentic) {
					t.Errorf("%s: found at the layer's end only: %v", what, err)
				}
			}
			step := max(1, len(data)/60)
			for i := 0; i < len(data); i += step {
				b := bytes.Clone(data)
				b[i] ^= 1 << (i % 8)
				try(fmt.Sprintf("bit %d of byte %d", i%8, i), b, false)
				try(fmt.Sprintf("first %d bytes", i), data[:i], true)
			}
			try("without its last byte", data[:len(data)-1], true)
			try("too large", append(bytes.Clone(data), make([]byte, 64<<10)...), true)
			for what, value := range map[string]string{
				"empty": "", "no base64": "{}", "line end": "\n" + l.desc.Annotations[name], "empty message": l.desc.Annotations[name] + ",",
				"many": strings.Repeat(",", 20), "huge": strings.Repeat("A", 1<<20),
			} {
				if _, err := read(t.Context(), keys, with(l.desc.Annotations, name, value), l.blob); err == nil {
					t.Errorf("%s: was read", what)
				}
			}
		})
	}
}

// Several messages of one protocol, and what cannot be read beside what can.
func TestMixedAnnotations(t *testing.T) {
	first, second := encrypt(t, "x", imagecrypt.Gzip, "jwe:bob"), encrypt(t, "x", imagecrypt.Gzip, "jwe:alice", "pkcs7:alice", packetURI)
	jwe, pkcs7, agent := decrypt.KeysPrefix+"jwe", decrypt.KeysPrefix+"pkcs7", decrypt.KeysAnnotation
	for name, tt := range map[string]struct {
		keys        decrypt.Keys
		annotations map[string]string
	}{
		"list":                  {guest(t, "alice"), with(second.desc.Annotations, jwe, first.desc.Annotations[jwe]+","+second.desc.Annotations[jwe])},
		"jwe damaged":           {guest(t, "alice"), with(second.desc.Annotations, jwe, "x")},
		"pkcs7 damaged":         {guest(t, "alice"), with(second.desc.Annotations, pkcs7, "x")},
		"packets damaged":       {guest(t, "alice"), with(second.desc.Annotations, agent, "x")},
		"all but packets":       {packetGuest(packetURI), with(with(second.desc.Annotations, jwe, "x"), pkcs7, "")},
		"unknown protocol":      {guest(t, "alice"), with(second.desc.Annotations, decrypt.KeysPrefix+"rot13", "x")},
		"pkcs11":                {packetGuest(packetURI), with(second.desc.Annotations, decrypt.KeysPrefix+"pkcs11", "x")},
		"another provider":      {packetGuest(packetURI), with(second.desc.Annotations, decrypt.KeysPrefix+"provider.aws", "x")},
		"another provider name": {packetGuest(packetURI), with(map[string]string{decrypt.PublicAnnotation: second.desc.Annotations[decrypt.PublicAnnotation]}, decrypt.KeysPrefix+"provider.cdh", second.desc.Annotations[agent])},
	} {
		if plain, err := read(t.Context(), tt.keys, tt.annotations, second.blob); err != nil || !bytes.Equal(plain, second.plain) {
			t.Errorf("%s: %d bytes, %v", name, len(plain), err)
		}
	}
	many := maps.Clone(second.desc.Annotations)
	for i := range 1000 {
		many[fmt.Sprintf("%sprovider.%d", decrypt.KeysPrefix, i)] = "x"
	}
	delete(many, agent)
	if _, err := guest(t, "bob").Unwrap(t.Context(), many); err == nil || !strings.Contains(err.Error(), "more than 16 annotations") || len(err.Error()) > 8<<10 {
		t.Errorf("many annotations: %v", err)
	}
}

// A key fits its own layer only, and all of that.
func TestSwappedAndTruncatedLayers(t *testing.T) {
	for spec := range protocols {
		t.Run(spec, func(t *testing.T) {
			a, b := encrypt(t, "x", imagecrypt.Gzip, spec), encrypt(t, "y", imagecrypt.Gzip, spec)
			keys := guestOf(t, spec)
			for name, tt := range map[string]struct {
				annotations map[string]string
				blob        []byte
			}{
				"blob of another layer":    {a.desc.Annotations, b.blob},
				"HMAC of another layer":    {with(a.desc.Annotations, decrypt.PublicAnnotation, b.desc.Annotations[decrypt.PublicAnnotation]), a.blob},
				"options of another layer": {with(a.desc.Annotations, decrypt.PublicAnnotation, b.desc.Annotations[decrypt.PublicAnnotation]), b.blob},
				"truncated":                {a.desc.Annotations, a.blob[:len(a.blob)-1]},
				"empty":                    {a.desc.Annotations, nil},
				"longer":                   {a.desc.Annotations, append(bytes.Clone(a.blob), 0)},
			} {
				if _, err := read(t.Context(), keys, tt.annotations, tt.blob); !errors.Is(err, decrypt.ErrUnauthentic) || errors.Is(err, decrypt.ErrWrongKey) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// Pulls are told apart by everything that decides what a layer decrypts to, and by nothing else.
func TestIdentity(t *testing.T) {
	a := map[string]string{decrypt.KeysAnnotation: "x", decrypt.PublicAnnotation: "y", "org.opencontainers.image.title": "t"}
	if decrypt.Identity(a) != decrypt.Identity(with(a, "org.opencontainers.image.title", "u")) {
		t.Error("a title tells pulls apart")
	}
	seen := map[string]string{decrypt.Identity(a): "itself", decrypt.Identity(nil): "nothing"}
	for name, other := range map[string]map[string]string{
		"packets": with(a, decrypt.KeysAnnotation, "z"), "options": with(a, decrypt.PublicAnnotation, "z"),
		"jwe": with(a, decrypt.KeysPrefix+"jwe", "z"), "provider": with(a, decrypt.KeysPrefix+"provider.z", "z"),
	} {
		id := decrypt.Identity(other)
		if seen[id] != "" {
			t.Errorf("%s is told apart from %s", name, seen[id])
		}
		seen[id] = name
	}
}
