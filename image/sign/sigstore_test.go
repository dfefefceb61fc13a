// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package sign

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestSigstoreSigned(t *testing.T) {
	key, public := ecKey(t)
	stranger, _ := ecKey(t)
	good := cosign(t, key, testRef, testDigest())
	bad := cosign(t, stranger, testRef, testDigest())
	// with returns the good signature with another payload or annotations.
	with := func(payload []byte, annotations map[string]string) attached {
		a := maps.Clone(good.annotations)
		maps.Copy(a, annotations)
		return attached{payload, a}
	}
	signature := func(s string) attached { return with(good.payload, map[string]string{annotationSignature: s}) }
	tampered := with(bytes.Replace(good.payload, []byte("team/app"), []byte("team/bad"), 1), nil)
	for name, tt := range map[string]struct {
		signatures []attached
		want       string
	}{
		"good":                   {[]attached{good}, ""},
		"none":                   {[]attached{}, "reject: policy of default: A signature was required, but no signature exists"},
		"a stranger's":           {[]attached{bad}, "reject: cryptographic signature verification failed"},
		"tampered":               {[]attached{tampered}, "reject: cryptographic signature verification failed"},
		"another tag":            {[]attached{cosign(t, key, testRepo+":v2", testDigest())}, "reject: Signature for identity"},
		"another repository":     {[]attached{cosign(t, key, "registry.example/team/bad:v1", testDigest())}, "reject: Signature for identity"},
		"cosign's identity":      {[]attached{cosign(t, key, testRepo, testDigest())}, "reject: Signature for identity"},
		"another digest":         {[]attached{cosign(t, key, testRef, digest.FromString("x"))}, "reject: Signature for digest"},
		"of GnuPG's type":        {[]attached{signed(t, key, payload(t, "atomic container signature", testRef, testDigest()))}, "reject: "},
		"not JSON":               {[]attached{signed(t, key, []byte("hello"))}, "reject: "},
		"key twice":              {[]attached{signed(t, key, bytes.Replace(good.payload, []byte("{"), []byte(`{"critical":{},`), 1))}, "reject: Duplicate key"},
		"one of many is good":    {[]attached{bad, tampered, signature("?"), {good.payload, nil}, good}, ""},
		"all of many are bad":    {[]attached{bad, tampered}, "reject: None of the signatures were accepted"},
		"no annotation":          {[]attached{{good.payload, nil}}, "reject: missing " + annotationSignature},
		"no base64":              {[]attached{signature("?")}, "reject: base64"},
		"empty signature":        {[]attached{signature("")}, "reject: "},
		"control characters":     {[]attached{signature("\x1b[2J\n")}, "reject: "},
		"huge annotation":        {[]attached{signature(strings.Repeat("A", 900<<10))}, "reject: "},
		"larger annotation":      {[]attached{signature(strings.Repeat("A", 1<<20))}, "larger than 1048576 bytes"},
		"many annotations":       {[]attached{with(good.payload, manyAnnotations(10000))}, ""},
		"certificate is ignored": {[]attached{with(good.payload, map[string]string{annotationCertificate: "x", annotationChain: "y", annotationBundle: "{"})}, ""},
		"largest payload":        {[]attached{signed(t, key, bytes.Repeat([]byte(" "), MaxSignatureSize)), good}, ""},
		"payload too large":      {[]attached{signed(t, key, bytes.Repeat([]byte(" "), MaxSignatureSize+1)), good}, "at most 131072 are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			src.attach(t, testDigest(), tt.signatures...)
			check(t, load(t, policyOf(kindSigstore, `,"keyPath":"/key"`), map[string][]byte{"/key": public}), src, tt.want)
		})
	}
}

// signed is a cosign signature of any payload.
func signed(t *testing.T, key *ecdsa.PrivateKey, text []byte) attached {
	t.Helper()
	return attached{text, map[string]string{annotationSignature: cosignSignature(t, key, text)}}
}

func manyAnnotations(n int) map[string]string {
	m := make(map[string]string, n)
	for i := range n {
		m["a"+strings.Repeat("x", i%50)+string(rune('A'+i%1000))] = "\x00"
	}
	return m
}

// Where signatures are looked for, and where not.
func TestSigstoreStores(t *testing.T) {
	key, public := ecKey(t)
	good := cosign(t, key, testRef, testDigest())
	stored, err := json.Marshal(sigstoreSignature{MIMEType: cosignPayload, Payload: good.payload, Annotations: good.annotations})
	if err != nil {
		t.Fatal(err)
	}
	stored = append([]byte(sigstorePrefix), stored...)
	for name, tt := range map[string]struct {
		lookaside      string
		kept, attached bool
		want           string
	}{
		"in the registry":           {"", false, true, ""},
		"in the store":              {testLookaside, true, false, ""},
		"in both":                   {testLookaside, true, true, ""},
		"in neither":                {testLookaside, false, false, "reject: "},
		"in a store that is unused": {"", true, false, "reject: "},
		"registry is not asked":     {"default-docker: {use-sigstore-attachments: false}", false, true, "reject: "},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			if tt.kept {
				src.keep(stored)
			}
			if tt.attached {
				src.attach(t, testDigest(), good)
			}
			p, err := New(Config{Policy: []byte(policyOf(kindSigstore, `,"keyData":`+b64(public))), Lookaside: []byte(tt.lookaside), TempDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			check(t, p, src, tt.want)
		})
	}
	t.Run("sha512", func(t *testing.T) {
		// Such a digest makes no tag, so that only the store can have its signatures.
		d := digest.SHA512.FromBytes(testManifest)
		src := newSource()
		src.content[testRepo+"@"+d.String()] = testManifest
		p := load(t, policyOf(kindSigstore, `,"keyData":`+b64(public)), nil)
		outcome(t, p.Check(t.Context(), testRef, d, src), "reject: no signature exists")
		src.content[strings.Replace(lookasideURL(1), "sha256="+testDigest().Encoded(), "sha512="+d.Encoded(), 1)] = stored
		outcome(t, p.Check(t.Context(), testRef, d, src), "") // the signature is for the same manifest
	})
}

// A list of requirements is met by different signatures; each requirement needs one.
func TestTwoSigners(t *testing.T) {
	ec, ecPublic := ecKey(t)
	gpg, gpgPublic := gpgKey(t, nil)
	policy := `{"default":[{"type":"reject"}],"transports":{"docker":{"` + testRepo + `":[
		{"type":"sigstoreSigned","keyPath":"/ec"},{"type":"signedBy","keyType":"GPGKeys","keyPath":"/gpg"}]}}}`
	p := load(t, policy, map[string][]byte{"/ec": ecPublic, "/gpg": gpgPublic})
	src := newSource()
	src.attach(t, testDigest(), cosign(t, ec, testRef, testDigest()))
	check(t, p, src, `reject: policy of scope "`+testRepo+`": A signature was required`)
	src.keep(simpleSign(t, gpg, testRef, testDigest()))
	check(t, p, src, "")
	delete(src.content, attachmentTag(testDigest()))
	check(t, p, src, "reject: ")
}

func TestSigstoreKeySources(t *testing.T) {
	key, public := ecKey(t)
	_, other := ecKey(t)
	keys := map[string][]byte{"/key": public, "/other": other, "kbs:///default/cosign/key": public, "/junk": []byte("junk")}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keys["/private"] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	src := newSource()
	src.attach(t, testDigest(), cosign(t, key, testRef, testDigest()))
	raw := quote(t, string(public)) // as policies of Confidential Containers have it
	for fields, want := range map[string]string{
		`"keyPath":"/key"`:                                                    "",
		`"keyPath":"kbs:///default/cosign/key"`:                               "",
		`"keyPath":"/other"`:                                                  "reject: ",
		`"keyPaths":["/other","/key"]`:                                        "",
		`"keyPaths":["/other"]`:                                               "reject: ",
		`"keyData":` + b64(public):                                            "",
		`"keyData":` + raw:                                                    "",
		`"keyData":` + quote(t, strings.TrimSpace(string(public))):            "",
		`"keyDatas":[` + b64(other) + `,` + raw + `]`:                         "",
		`"keyDatas":[` + b64(other) + `]`:                                     "reject: ",
		`"keyData":` + b64([]byte(base64.StdEncoding.EncodeToString(public))): "not a public key in PEM",
		`"keyData":` + quote(t, "x"+string(public)):                           "neither base64 nor PEM",
		`"keyData":""`:                                                        "empty",
		`"keyPath":"/private"`:                                                "not a public key in PEM",
		`"keyPath":"/junk"`:                                                   "not a public key in PEM",
		`"keyPath":"/nowhere"`:                                                "not among the key files",
		`"keyPaths":["/key","/nowhere"]`:                                      "not among the key files",
		`"keyPath":"/key","keyData":` + raw:                                   "both keyPath and keyData",
		`"keyData":` + raw + `,"keyDatas":[` + raw + `]`:                      "both keyData and keyDatas",
		`"signedIdentity":{"type":"matchExact"}`:                              "must be specified",
		`"keyPath":"/key","rekorPublicKeyPath":"/nowhere"`:                    "not among the key files",
		`"keyPath":"/key","unknown":1`:                                        `Unknown key "unknown"`,
		`"keyPath":"/key","fulcio":{"caPath":"/key","oidcIssuer":"i","subjectEmail":"e"}`: "no certificate in PEM",
		`"keyPath":"/key","fulcio":null`: "fulcio is not an object",
	} {
		p, err := New(Config{Policy: []byte(policyOf(kindSigstore, `,`+fields)), Keys: keys, TempDir: t.TempDir()})
		if err == nil {
			err = p.Check(t.Context(), testRef, testDigest(), src)
		}
		t.Run(fields[:min(len(fields), 60)], func(t *testing.T) { outcome(t, err, want) })
	}
}

// cosign makes keys of other kinds, too.
func TestSigstoreKeyTypes(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text := payload(t, "cosign container image signature", testRef, testDigest())
	edSignature := base64.StdEncoding.EncodeToString(ed25519.Sign(edKey, text))
	for name, tt := range map[string]struct {
		public    any
		signature string
	}{
		"rsa":     {rsaKey.Public(), cosignSignature(t, rsaKey, text)},
		"ed25519": {edKey.Public(), edSignature},
	} {
		der, err := x509.MarshalPKIXPublicKey(tt.public)
		if err != nil {
			t.Fatal(err)
		}
		public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		src := newSource()
		src.attach(t, testDigest(), attached{text, map[string]string{annotationSignature: tt.signature}})
		t.Run(name, func(t *testing.T) {
			check(t, load(t, policyOf(kindSigstore, `,"keyData":`+b64(public)), nil), src, "")
		})
	}
}

// A policy as Confidential Containers' documents show it: a cosign key by URI or as plain PEM, and repositories as
// identities, which is what cosign signs.
func TestConfidentialContainersPolicy(t *testing.T) {
	key, public := ecKey(t)
	for _, source := range []string{`"keyPath":"kbs:///default/cosign-public-key/test"`, `"keyData":` + quote(t, string(public))} {
		policy := `{"default":[{"type":"reject"}],"transports":{"docker":{"` + testRepo + `":[{"type":"sigstoreSigned",` + source +
			`,"signedIdentity":{"type":"matchRepository"}}]}}}`
		p := load(t, policy, map[string][]byte{"kbs:///default/cosign-public-key/test": public})
		src := newSource()
		src.attach(t, testDigest(), cosign(t, key, testRepo, testDigest()))
		check(t, p, src, "")
		outcome(t, p.Check(t.Context(), "registry.example/team/other:v1", testDigest(), src), "reject: policy of default")
	}
}
