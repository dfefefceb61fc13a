// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/ecdh"
	pgppacket "github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap"
	"github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/containers/ocicrypt/keywrap/pgp"
	"github.com/containers/ocicrypt/keywrap/pkcs7"
	"github.com/go-jose/go-jose/v4"
)

// options are private options as ocicrypt writes them.
const options = `{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","digest":"sha256:` +
	`0000000000000000000000000000000000000000000000000000000000000000","cipheroptions":{"nonce":"AAECAwQFBgcICQoLDA0ODw=="}}`

func keyData(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/keys", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func parsedKey(t testing.TB, name string) *privateKey {
	t.Helper()
	key, err := parsePrivateKey(keyData(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// wrapped is a message of ocicrypt's.
func wrapped(t testing.TB, w keywrap.KeyWrapper, content string, parameters map[string][][]byte) []byte {
	t.Helper()
	data, err := w.WrapKeys(&config.EncryptConfig{Parameters: parameters}, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func wrappedJWE(t testing.TB, content string, names ...string) []byte {
	t.Helper()
	var public [][]byte
	for _, n := range names {
		public = append(public, keyData(t, n+".pub"))
	}
	return wrapped(t, jwe.NewKeyWrapper(), content, map[string][][]byte{"pubkeys": public})
}

func wrappedPKCS7(t testing.TB, content string, names ...string) []byte {
	t.Helper()
	var certs [][]byte
	for _, n := range names {
		certs = append(certs, keyData(t, n+".crt"))
	}
	return wrapped(t, pkcs7.NewKeyWrapper(), content, map[string][][]byte{"x509s": certs})
}

func wrappedPGP(t testing.TB, content, name string) []byte {
	t.Helper()
	return wrapped(t, pgp.NewKeyWrapper(), content, map[string][][]byte{
		"gpg-pubkeyringfile": {keyData(t, name+".pub")}, "gpg-recipients": {[]byte(name + "@example.com")},
	})
}

// pgpPlain is a PGP message that is not encrypted.
func pgpPlain(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pgppacket.SerializeLiteral(nopCloser{&b}, true, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, options); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Messages that a library would accept and that are none of ours.
func TestRefusedMessages(t *testing.T) {
	many := make([]string, maxPackets+1)
	for i := range many {
		many[i] = "carol"
	}
	manyCerts := make([]string, maxPackets+1)
	for i := range manyCerts {
		manyCerts[i] = "alice"
	}
	manyPGP := bytes.Repeat(pgpKeyPacket(t), maxPackets+1)
	enveloped := string(wrappedPKCS7(t, options, "alice"))
	for name, tt := range map[string]struct{ protocol, message, want string }{
		"jwe: recipients":      {"jwe", string(wrappedJWE(t, options, many...)), "JWE for 17 recipients"},
		"jwe: two lists":       {"jwe", `{"recipients":[],"Recipients":[]}`, "parse JWE"},
		"jwe: list twice":      {"jwe", `{"recipients":[` + strings.Repeat(`{},`, 99) + `{}],"recipients":[]}`, "duplicate"},
		"jwe: password":        {"jwe", string(passwordJWE(t)), "PBES2"},
		"jwe: direct":          {"jwe", string(directJWE(t)), "unexpected key algorithm"},
		"jwe: no recipients":   {"jwe", `{}`, "parse JWE"},
		"jwe: text":            {"jwe", "x", "parse JWE"},
		"jwe: recipients text": {"jwe", `{"recipients":"x"}`, "parse recipients"},
		"jwe: deep":            {"jwe", strings.Repeat("[", maxMessage), "parse JWE"},
		"jwe: deep in object":  {"jwe", `{"x":` + strings.Repeat("[", maxMessage-5), "parse JWE"},
		"pkcs7: recipients":    {"pkcs7", string(wrappedPKCS7(t, options, manyCerts...)), "17 recipients"},
		"pkcs7: AES-CBC":       {"pkcs7", strings.Replace(enveloped, "\x60\x86\x48\x01\x65\x03\x04\x01\x06", "\x60\x86\x48\x01\x65\x03\x04\x01\x02", 1), "content cipher 2.16.840.1.101.3.4.1.2 is not AES-GCM"},
		"pkcs7: OAEP":          {"pkcs7", strings.Replace(enveloped, "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07", 1), "key encryption 1.2.840.113549.1.1.7"},
		"pkcs7: signed":        {"pkcs7", strings.Replace(enveloped, "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03", "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02", 1), "not the enveloped data"},
		"pkcs7: more":          {"pkcs7", enveloped + "x", "data after the value"},
		"pkcs7: deep":          {"pkcs7", strings.Repeat("\x30\x80", maxMessage/2), "parse DER"},
		"pgp: not encrypted":   {"pgp", string(pgpPlain(t)), "not one that is encrypted"},
		"pgp: no recipients":   {"pgp", string(pgpData(t)), "has no recipients"},
		"pgp: recipients":      {"pgp", string(manyPGP), "more than 16 recipients"},
		"pgp: password":        {"pgp", string(pgpPassword(t)), "for public keys only"},
		"pgp: only recipients": {"pgp", string(pgpKeyPacket(t)), "parse PGP message"},
		"pgp: text":            {"pgp", "x", "parse PGP message"},
		"too large":            {"pgp", strings.Repeat("x", maxMessage+1), "larger than"},
		"empty":                {"pkcs7", "", "parse DER"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := parseMessage(tt.protocol, b64(tt.message))
			if err == nil || m != nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 400 {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func passwordJWE(t testing.TB) []byte {
	t.Helper()
	return joseMessage(t, jose.Recipient{Algorithm: jose.PBES2_HS256_A128KW, Key: []byte("x"), PBES2Count: 1000})
}

func directJWE(t testing.TB) []byte {
	t.Helper()
	return joseMessage(t, jose.Recipient{Algorithm: jose.DIRECT, Key: make([]byte, 32)})
}

func joseMessage(t testing.TB, r jose.Recipient) []byte {
	t.Helper()
	e, err := jose.NewEncrypter(jose.A256GCM, r, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := e.Encrypt([]byte(options))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(m.FullSerialize())
}

// pgpKeyPacket is the first packet of a message for a ring, and pgpData the rest.
func pgpKeyPacket(t testing.TB) []byte {
	t.Helper()
	m := wrappedPGP(t, options, "erin")
	return m[:len(m)-len(rest(t, m))]
}

func pgpData(t testing.TB) []byte {
	t.Helper()
	return rest(t, wrappedPGP(t, options, "erin"))
}

func rest(t testing.TB, message []byte) []byte {
	t.Helper()
	r := bytes.NewReader(message)
	if _, err := pgppacket.Read(r); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func pgpPassword(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := openpgp.SymmetricallyEncrypt(&b, []byte("sesame"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, options); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Whoever has a public key can wrap anything: what is unwrapped is checked as well.
func TestRefusedOptions(t *testing.T) {
	v := readVector(t)
	replace := func(from, to string) string {
		if !strings.Contains(options, from) {
			t.Fatal(from)
		}
		return strings.Replace(options, from, to, 1)
	}
	for name, content := range map[string]string{
		"none": "", "no JSON": "SECRET", "short key": replace(`AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=`, `AAEC`),
		"short nonce": replace(`AAECAwQFBgcICQoLDA0ODw==`, `AAEC`), "no nonce": replace(`"nonce"`, `"x"`),
		"digest": replace("sha256:", "sha256"), "digest of a path": replace("sha256:0", "../:0"), "unknown field": replace(`"digest"`, `"SECRET"`),
		"large": replace(`"AAEC`, strings.Repeat(" ", maxWrapped)+`"AAEC`), "compressible": strings.Repeat(" ", 200_000) + options,
	} {
		for protocol, message := range map[string][]byte{
			"jwe": wrappedJWE(t, content, "alice"), "pkcs7": nil, "pgp": nil,
		} {
			uri, file := "kbs:///a/b/alice", "alice.key"
			if len(content) < maxMessage/2 {
				switch protocol {
				case "pkcs7":
					message = wrappedPKCS7(t, content, "alice")
				case "pgp":
					message = wrappedPGP(t, content, "erin")
					uri, file = "kbs:///a/b/erin", "erin.key"
				}
			} else if protocol != "jwe" {
				continue
			} else {
				message = zipJWE(t, content)
			}
			keys := Keys{ByURI: only(uri, keyData(t, file)), PrivateKeys: []string{uri}}
			key, err := keys.Unwrap(t.Context(), map[string]string{KeysPrefix + protocol: base64.StdEncoding.EncodeToString(message), PublicAnnotation: v.PubOpts})
			if err == nil || key != nil || !strings.Contains(err.Error(), uri) || strings.Contains(err.Error(), "SECRET") {
				t.Errorf("%s, %s: %v", name, protocol, err)
			}
		}
	}
}

// zipJWE is a message that is compressed inside.
func zipJWE(t testing.TB, content string) []byte {
	t.Helper()
	e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.RSA_OAEP, Key: parsedKey(t, "alice.key").rsa.Public()}, &jose.EncrypterOptions{Compression: jose.DEFLATE})
	if err != nil {
		t.Fatal(err)
	}
	m, err := e.Encrypt([]byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(m.FullSerialize())
}

// Another size of nonce or tag, or of the content's key, is an error and no panic.
func TestPKCS7Parameters(t *testing.T) {
	for _, p := range []gcmParameters{{make([]byte, 11), 16}, {make([]byte, 16), 16}, {nil, 16}, {make([]byte, 12), 12}, {make([]byte, 12), 0}} {
		data, err := asn1.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var m pkcs7Message
		a := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 6}, Parameters: asn1.RawValue{Bytes: data}}
		if err := m.cipher(a); err == nil {
			t.Errorf("nonce of %d, tag of %d bytes: accepted", len(p.Nonce), p.ICVLen)
		}
	}
	parsed, err := parsePKCS7(wrappedPKCS7(t, options, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	m, ok := parsed.(pkcs7Message)
	if !ok {
		t.Fatalf("a %T", parsed)
	}
	m.keySize = 32
	if _, err := m.open(parsedKey(t, "alice.key")); err == nil {
		t.Error("a key of 16 bytes opened as one of 32")
	}
	m.keySize, m.content = 16, nil
	if _, err := m.open(parsedKey(t, "alice.key")); err == nil {
		t.Error("no content was opened")
	}
}

func TestPrivateKeysAreWiped(t *testing.T) {
	r, e, p := parsedKey(t, "alice.key"), parsedKey(t, "carol.key"), parsedKey(t, "frank.key")
	d, q, s := r.rsa.D.Bits(), r.rsa.Primes[0].Bits(), e.ec.D.Bits() //nolint:staticcheck // SA1019: what the test looks at
	var secrets [][]byte
	for _, k := range privateKeysOf(p.ring) {
		if key, ok := k.PrivateKey.(*ecdh.PrivateKey); ok {
			secrets = append(secrets, key.D)
		}
	}
	for _, k := range []*privateKey{r, e, p} {
		k.wipe()
	}
	for name, words := range map[string][]big.Word{"D": d, "prime": q, "scalar": s} {
		for _, w := range words {
			if w != 0 {
				t.Errorf("%s is left", name)
				break
			}
		}
	}
	if len(secrets) == 0 {
		t.Error("the ring has no key to decrypt with")
	}
	for _, b := range secrets {
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Error("PGP's key is left")
		}
	}
	if r.rsa != nil || e.ec != nil || p.ring != nil {
		t.Error("a key is left")
	}
}
