// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"bytes"
	"context"
	"encoding/base64"
	"strings"
	"testing"
)

// fuzzMessages opens what the parser accepts. Who has no private key makes no message that opens to something new out
// of the seeds, unless it is one for the public key, which a fuzzer does not find.
func fuzzMessages(f *testing.F, protocol string, keys ...string) {
	f.Helper()
	var parsed []*privateKey
	for _, name := range keys {
		parsed = append(parsed, parsedKey(f, name))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseMessage(protocol, base64.StdEncoding.EncodeToString(data))
		if err != nil {
			return
		}
		for _, k := range parsed {
			if !m.suits(k) {
				continue
			}
			if plain, err := m.open(k); err == nil && string(plain) != options {
				t.Fatalf("opened to %q", plain)
			}
		}
	})
}

func FuzzJWE(f *testing.F) {
	f.Add(wrappedJWE(f, options, "alice"))
	f.Add(wrappedJWE(f, options, "carol"))
	f.Add(wrappedJWE(f, options, "alice", "bob", "carol", "dave"))
	f.Add(zipJWE(f, options))
	f.Add(passwordJWE(f))
	f.Add([]byte("e30.e30.AA.AA.AA"))
	fuzzMessages(f, protocolJWE, "alice.key", "carol.key")
}

func FuzzPKCS7(f *testing.F) {
	f.Add(wrappedPKCS7(f, options, "alice"))
	f.Add(wrappedPKCS7(f, options, "bob", "alice"))
	f.Add([]byte("0\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03\xa0\x80\x00\x00"))
	fuzzMessages(f, protocolPKCS7, "alice.key")
}

func FuzzPGP(f *testing.F) {
	f.Add(wrappedPGP(f, options, "erin"))
	f.Add(wrappedPGP(f, options, "frank"))
	f.Add(pgpPlain(f))
	f.Add(pgpPassword(f))
	f.Add(pgpData(f))
	fuzzMessages(f, protocolPGP, "erin.key", "frank.key")
}

// Private keys come from where keys come from, and are still read with care.
func FuzzPrivateKey(f *testing.F) {
	for _, name := range []string{"alice.key", "carol.key", "erin.key", "frank.key", "grace.key", "locked.key", "alice.crt", "alice.pub"} {
		f.Add(keyData(f, name))
	}
	f.Add([]byte(`{"kty":"EC","crv":"P-256","x":"AA","y":"AA","d":"AA"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		given := bytes.Clone(data)
		key, err := parsePrivateKey(data)
		if err == nil {
			if key.rsa == nil && key.ec == nil && key.ring == nil {
				t.Fatal("no key and no error")
			}
			key.wipe()
		}
		if !bytes.Equal(given, data) {
			t.Fatal("the key was changed while it was read")
		}
	})
}

// What is unwrapped must not panic later, whoever has wrapped it.
func FuzzPrivateOptions(f *testing.F) {
	v := readVector(f)
	for _, s := range []string{options, "", "{}", strings.Replace(options, "sha256:", "", 1), strings.Replace(options, "AAECAwQFBgcICQoLDA0ODw==", "", 1)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		unproven, err := parseUnproven(data)
		if err != nil {
			t.Fatal(err)
		}
		if len(unproven.SymmetricKey) != layerKeySize || len(unproven.CipherOptions["nonce"]) != 16 {
			t.Fatalf("%+v", unproven)
		}
		key, err := NewLayerKey(map[string]string{PublicAnnotation: v.PubOpts}, data)
		if err != nil {
			return
		}
		defer key.Wipe()
		if d := key.PlainDigest(); d != "" && d.Algorithm() == "" {
			t.Fatalf("digest %q has no algorithm", d)
		}
		if _, err := key.Reader(strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	})
}

// All annotations of a layer at once: whatever is in them, only keys with sound names are asked for, not too many, and
// no layer is accepted.
func FuzzAnnotations(f *testing.F) {
	v := readVector(f)
	encode := base64.StdEncoding.EncodeToString
	f.Add("jwe", encode(wrappedJWE(f, options, "alice")), "provider.x", v.PacketV1, v.PubOpts)
	f.Add("pkcs7", encode(wrappedPKCS7(f, options, "alice")), "provider.attestation-agent", v.PacketCTR, v.PubOpts)
	f.Add("pgp", encode(wrappedPGP(f, options, "erin")), "pkcs11", "x", v.PubOpts)
	private := map[string][]byte{"kbs:///a/b/alice": keyData(f, "alice.key"), "kbs:///a/b/erin": keyData(f, "erin.key"), v.KeyURI: v.key(f)}
	f.Fuzz(func(t *testing.T, first, firstValue, second, secondValue, public string) {
		asked := 0
		keys := Keys{PrivateKeys: []string{"kbs:///a/b/alice", "kbs:///a/b/erin"}, ByURI: func(_ context.Context, uri string) ([]byte, error) {
			if asked++; checkKeyURI(uri) != nil || asked > maxPackets+MaxPrivateKeys {
				t.Fatalf("asked for key %q as number %d", uri, asked)
			}
			return bytes.Clone(private[uri]), nil
		}}
		annotations := map[string]string{KeysPrefix + first: firstValue, KeysPrefix + second: secondValue, PublicAnnotation: public}
		Identity(annotations)
		k, err := keys.Unwrap(t.Context(), annotations)
		if err != nil {
			return
		}
		defer k.Wipe()
		r, err := k.Reader(strings.NewReader("not what was encrypted"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 100)); err == nil {
			t.Fatal("a forged layer was accepted")
		}
	})
}
