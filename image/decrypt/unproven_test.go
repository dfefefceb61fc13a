// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
)

// Damage to a key that is wrapped without authentication never shows before the layer's HMAC, and there always in the
// same way.
func TestUnprovenKeysTellNothing(t *testing.T) {
	v := readVector(t)
	packets, err := parsePackets(KeysAnnotation, v.PacketCTR)
	if err != nil {
		t.Fatal(err)
	}
	good := packets[0]
	plain, err := good.open(v.key(t))
	if err != nil {
		t.Fatal(err)
	}
	start := bytes.Index(plain, []byte(`"symkey":"`)) + len(`"symkey":"`)
	outcome := func(wrapped []byte, keys KeyFunc) error {
		t.Helper()
		wire, err := json.Marshal(map[string]any{"kid": v.KeyURI, "wrapped_data": wrapped, "iv": good.IV, "wrap_type": wrapCTR})
		if err != nil {
			t.Fatal(err)
		}
		key, err := Unwrap(t.Context(), v.annotations(b64(string(wire))), keys)
		if err != nil {
			t.Fatalf("found early: %v", err)
		}
		defer key.Wipe()
		r, err := key.Reader(bytes.NewReader(v.Layer))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, r)
		return err
	}
	if err := outcome(good.Wrapped, only(v.KeyURI, v.key(t))); err != nil {
		t.Fatal(err)
	}
	wrong := outcome(good.Wrapped, only(v.KeyURI, make([]byte, 32)))
	if !errors.Is(wrong, ErrWrongKey) || !errors.Is(wrong, ErrUnauthentic) || !strings.Contains(wrong.Error(), v.KeyURI) {
		t.Errorf("wrong key: %v", wrong)
	}
	for i := range good.Wrapped {
		inKey := i >= start && i < start+44
		for bit := range 8 {
			if !inKey && bit != i%8 {
				continue // what is beside the key is tried with one bit of each byte
			}
			b := bytes.Clone(good.Wrapped)
			b[i] ^= 1 << bit
			err := outcome(b, only(v.KeyURI, v.key(t)))
			if inKey && err == nil {
				t.Errorf("bit %d of byte %d of the key does not count", bit, i-start)
			}
			if err != nil && err.Error() != wrong.Error() {
				t.Errorf("bit %d of byte %d: %v", bit, i, err)
			}
		}
	}
	for _, n := range []int{1, 50, len(good.Wrapped) - 1} {
		if err := outcome(good.Wrapped[:n], only(v.KeyURI, v.key(t))); err == nil || err.Error() != wrong.Error() {
			t.Errorf("first %d bytes: %v", n, err)
		}
	}
}

// A key that something proves comes before one that nothing does.
func TestUnprovenKeysComeLast(t *testing.T) {
	v := readVector(t)
	forged := change(t, v.PacketCTR, `"wrapped_data":"w`, `"wrapped_data":"x`)
	for name, annotation := range map[string]string{"first": forged + "," + v.PacketV1, "last": v.PacketV1 + "," + forged} {
		key, err := Unwrap(t.Context(), v.annotations(annotation), only(v.KeyURI, v.key(t)))
		if err != nil || key.unproven != "" {
			t.Errorf("%s: %v, %+v", name, err, key)
		}
	}
}
