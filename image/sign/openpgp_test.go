// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package sign

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/opencontainers/go-digest"
)

// signedBy is a policy with a key given by path.
const signedBy = `{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/key"}]}`

func TestSignedBy(t *testing.T) {
	past := time.Now().Add(-48 * time.Hour)
	key, public := gpgKey(t, at(past.Add(-time.Hour)))
	stranger, _ := gpgKey(t, nil)
	expiredConfig := at(past)
	expiredConfig.KeyLifetimeSecs = 3600
	expired, expiredPublic := gpgKey(t, expiredConfig)
	good := simpleSign(t, key, testRef, testDigest())
	text := payload(t, "atomic container signature", testRef, testDigest())
	tampered := bytes.Replace(good, []byte("team/app"), []byte("team/bad"), 1)
	short := *at(past)
	short.SigLifetimeSecs = 3600
	for name, tt := range map[string]struct {
		signatures [][]byte
		want       string
	}{
		"good":                    {[][]byte{good}, ""},
		"none":                    {nil, "reject: policy of default: A signature was required, but no signature exists"},
		"tampered":                {[][]byte{tampered}, "reject: "},
		"truncated":               {[][]byte{good[:len(good)-20]}, "reject: "},
		"a stranger's":            {[][]byte{simpleSign(t, stranger, testRef, testDigest())}, "reject: "},
		"another digest":          {[][]byte{simpleSign(t, key, testRef, digest.FromString("x"))}, "reject: Signature for digest"},
		"another tag":             {[][]byte{simpleSign(t, key, testRepo+":v2", testDigest())}, "reject: Signature for identity"},
		"another repository":      {[][]byte{simpleSign(t, key, "registry.example/team/bad:v1", testDigest())}, "reject: Signature for identity"},
		"no tag":                  {[][]byte{simpleSign(t, key, testRepo, testDigest())}, "reject: Signature for identity"},
		"expired signature":       {[][]byte{gpgSign(t, key, &short, text)}, "reject: "},
		"of sigstore's type":      {[][]byte{gpgSign(t, key, nil, payload(t, "cosign container image signature", testRef, testDigest()))}, "reject: "},
		"signed, but not JSON":    {[][]byte{gpgSign(t, key, nil, []byte("hello"))}, "reject: "},
		"one of many is good":     {[][]byte{tampered, []byte("junk"), {}, good, []byte("\x00sigstore-json\n{")}, ""},
		"all of many are bad":     {[][]byte{tampered, []byte("junk"), {}}, "reject: 2 more are no signatures"},
		"with a prefix":           {[][]byte{append([]byte("\x00simple-signing\n"), good...)}, ""},
		"compressed":              {[][]byte{compressed(t, good)}, ""},
		"compressed twice":        {[][]byte{compressed(t, compressed(t, good))}, "reject: tag 8"},
		"a bomb":                  {[][]byte{compressed(t, make([]byte, 1<<20))}, "reject: more than 131072 bytes uncompressed"},
		"a bomb that is signed":   {[][]byte{compressed(t, gpgSign(t, key, nil, make([]byte, 1<<20)))}, "reject: more than 131072 bytes uncompressed"},
		"a bomb, and a good one":  {[][]byte{compressed(t, make([]byte, 1<<20)), good}, ""},
		"encrypted":               {[][]byte{encrypted(t, text)}, "reject: "},
		"the key, not signatures": {[][]byte{public}, "reject: "},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			src.keep(tt.signatures...)
			check(t, load(t, signedBy, map[string][]byte{"/key": public}), src, tt.want)
			if src.asked(attachmentTag(testDigest())) != 0 {
				t.Error("the registry was asked for sigstore signatures")
			}
		})
	}
	t.Run("expired key", func(t *testing.T) {
		src := newSource()
		src.keep(gpgSign(t, expired, at(past.Add(time.Minute)), text))
		check(t, load(t, signedBy, map[string][]byte{"/key": expiredPublic}), src, "reject: expired")
	})
}

// check asks a policy about the test image, and makes sure that nothing is left behind.
func check(t *testing.T, p *Policy, src *fakeSource, want string) {
	t.Helper()
	outcome(t, p.Check(t.Context(), testRef, testDigest(), src), want)
	if src.open != 0 {
		t.Errorf("%d bodies are open", src.open)
	}
	if left, err := os.ReadDir(p.engine.tempDir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func compressed(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := packet.SerializeCompressed(nopCloser{&buf}, packet.CompressionZLIB, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type nopCloser struct{ *bytes.Buffer }

func (nopCloser) Close() error { return nil }

func encrypted(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := openpgp.SymmetricallyEncrypt(&buf, []byte("passphrase"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// GnuPG 2.4 made these: gpg --sign of a simple signing payload for the test image, with its default compression, with
// bzip2, and with none.
func TestGnuPG(t *testing.T) {
	public := read(t, "gnupg.asc")
	for _, name := range []string{"gnupg.sig", "gnupg-bzip2.sig", "gnupg-plain.sig"} {
		sig := read(t, name)
		src := newSource()
		src.keep(sig)
		check(t, load(t, signedBy, map[string][]byte{"/key": public}), src, "")
		sig[len(sig)/2] ^= 1
		check(t, load(t, signedBy, map[string][]byte{"/key": public}), src, "reject: ")
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Keys come in all the forms that policies in use have.
func TestSignedByKeySources(t *testing.T) {
	key, public := gpgKey(t, nil)
	_, other := gpgKey(t, nil)
	var binary bytes.Buffer
	if err := key.Serialize(&binary); err != nil {
		t.Fatal(err)
	}
	secret := armored(t, openpgp.PrivateKeyType, func(w io.Writer) error { return key.SerializePrivateWithoutSigning(w, nil) })
	keys := map[string][]byte{"/key": public, "/binary": binary.Bytes(), "/other": other, "/secret": secret, "/empty": {}, "/junk": []byte("junk")}
	src := newSource()
	src.keep(simpleSign(t, key, testRef, testDigest()))
	for fields, want := range map[string]string{
		`"keyPath":"/key"`:                                      "",
		`"keyPath":"/binary"`:                                   "",
		`"keyPath":"/other"`:                                    "reject: ",
		`"keyPaths":["/other","/key"]`:                          "",
		`"keyPaths":["/binary","/other"]`:                       "",
		`"keyPaths":["/other"]`:                                 "reject: ",
		`"keyData":` + b64(public):                              "",
		`"keyData":` + b64(binary.Bytes()):                      "",
		`"keyData":` + quote(t, string(public)):                 "",
		`"keyData":` + quote(t, "\n "+string(public)):           "",
		`"keyPath":"/key","keyData":` + b64(public):             "both keyPath and keyData",
		`"keyPath":"/key","keyPaths":["/key"]`:                  "both keyPath and keyPaths",
		`"keyPath":"/nowhere"`:                                  `"/nowhere", which is not among`,
		`"keyPath":"testdata/gnupg.asc"`:                        "which is not among",
		`"keyPath":"/secret"`:                                   "secret key",
		`"keyPath":"/empty"`:                                    "empty",
		`"keyPath":"/junk"`:                                     "no OpenPGP public key",
		`"keyPath":null`:                                        "keyPath is not a string",
		`"keyPaths":[]`:                                         "not a list of strings",
		`"keyPaths":[null]`:                                     "not a list of strings",
		`"keyData":"?"`:                                         "neither base64 nor PEM",
		`"keyData":"-----BEGIN PGP PUBLIC KEY BLOCK-----"`:      "no OpenPGP public key",
		`"keyDatas":[` + b64(public) + `]`:                      "keyDatas is a field of",
		`"keyPath":"/key","signedIdentity":{"type":"matchAll"}`: "matchAll",
		`"keyPath":"/key","fulcio":{}`:                          `Unknown key "fulcio"`,
		`"keyPath":"/key","KeyPath":"/other"`:                   `Unknown key "KeyPath"`,
		`"signedIdentity":{"type":"matchExact"}`:                "neither keyPath nor",
	} {
		p, err := New(Config{
			Policy: []byte(policyOf(kindSignedBy, `,"keyType":"GPGKeys",`+fields)), Keys: keys,
			Lookaside: []byte(testLookaside), TempDir: t.TempDir(),
		})
		if err == nil {
			err = p.Check(t.Context(), testRef, testDigest(), src)
		}
		outcome(t, err, want)
	}
	for _, kind := range []string{"", `,"keyType":"signedByGPGKeys"`, `,"keyType":"X509Certificates"`} {
		_, err := New(Config{Policy: []byte(policyOf(kindSignedBy, `,"keyPath":"/key"`+kind)), Keys: keys, TempDir: t.TempDir()})
		outcome(t, err, "keyType is not GPGKeys")
	}
	_, err := New(Config{Policy: []byte(signedBy), Keys: keys})
	outcome(t, err, "no folder")
}

// The rules for which identity a signature may have, by containers-policy.json(5).
func TestSignedIdentity(t *testing.T) {
	key, public := gpgKey(t, nil)
	digested := testRepo + "@" + testDigest().String()
	otherDigest := testRepo + "@" + digest.FromString("x").String()
	for _, tt := range []struct{ identity, ref, signed, want string }{
		{``, testRef, testRef, ""},
		{``, digested, testRepo + ":any", ""},
		{``, digested, digested, ""},
		{``, digested, "registry.example/team/bad:v1", "reject: "},
		{``, testRef, digested, "reject: "},
		{`{"type":"matchExact"}`, testRef, testRef, ""},
		{`{"type":"matchExact"}`, testRef, testRepo + ":v2", "reject: "},
		{`{"type":"matchExact"}`, digested, testRef, "reject: "},
		{`{"type":"matchExact"}`, digested, digested, ""},
		{`{"type":"matchExact"}`, digested, otherDigest, "reject: "},
		{`{"type":"matchRepoDigestOrExact"}`, testRef, testRef, ""},
		{`{"type":"matchRepoDigestOrExact"}`, digested, testRepo + ":any", ""},
		{`{"type":"matchRepository"}`, testRef, testRepo + ":v2", ""},
		{`{"type":"matchRepository"}`, testRef, testRepo, ""},
		{`{"type":"matchRepository"}`, testRef, "registry.example/team/app2:v1", "reject: "},
		{`{"type":"exactReference","dockerReference":"upstream.example/app:1"}`, testRef, "upstream.example/app:1", ""},
		{`{"type":"exactReference","dockerReference":"upstream.example/app:1"}`, testRef, testRef, "reject: "},
		{`{"type":"exactRepository","dockerRepository":"upstream.example/app"}`, testRef, "upstream.example/app:9", ""},
		{`{"type":"exactRepository","dockerRepository":"upstream.example/app"}`, testRef, testRef, "reject: "},
		{`{"type":"remapIdentity","prefix":"registry.example","signedPrefix":"upstream.example"}`, testRef, "upstream.example/team/app:v1", ""},
		{`{"type":"remapIdentity","prefix":"registry.example","signedPrefix":"upstream.example"}`, testRef, testRef, "reject: "},
		{`{"type":"remapIdentity","prefix":"mirror.example","signedPrefix":"upstream.example"}`, testRef, testRef, ""},
	} {
		fields := `,"keyType":"GPGKeys","keyPath":"/key"`
		if tt.identity != "" {
			fields += `,"signedIdentity":` + tt.identity
		}
		src := newSource()
		src.keep(simpleSign(t, key, tt.signed, testDigest()))
		p := load(t, policyOf(kindSignedBy, fields), map[string][]byte{"/key": public})
		t.Run(tt.identity+tt.ref+tt.signed, func(t *testing.T) {
			outcome(t, p.Check(t.Context(), tt.ref, testDigest(), src), tt.want)
		})
	}
}

// What cannot be fetched is no rejection, and no permission either.
func TestFetchFailures(t *testing.T) {
	key, public := gpgKey(t, nil)
	ec, ecPublic := ecKey(t)
	keys := map[string][]byte{"/key": public, "/ec": ecPublic}
	sigstore := policyOf(kindSigstore, `,"keyPath":"/ec"`)
	unreachable := errors.New("connection refused")
	image := testRepo + "@" + testDigest().String()
	signed := cosign(t, ec, testRef, testDigest())
	blob := testRepo + "@" + digest.FromBytes(signed.payload).String()
	for name, tt := range map[string]struct {
		policy string
		change func(*fakeSource)
		want   string
	}{
		"good":                    {signedBy, func(*fakeSource) {}, ""},
		"good, sigstore":          {sigstore, func(*fakeSource) {}, ""},
		"no manifest":             {signedBy, func(s *fakeSource) { delete(s.content, image) }, "manifest"},
		"another manifest":        {signedBy, func(s *fakeSource) { s.content[image] = []byte("{}") }, "content has digest"},
		"endless manifest":        {signedBy, func(s *fakeSource) { s.endless[image] = true }, "larger than 4194304 bytes"},
		"store is down":           {signedBy, func(s *fakeSource) { s.fails[lookasideURL(1)] = unreachable }, "connection refused"},
		"store goes down":         {signedBy, func(s *fakeSource) { s.fails[lookasideURL(2)] = unreachable }, "connection refused"},
		"endless signature":       {signedBy, func(s *fakeSource) { s.endless[lookasideURL(2)] = true }, "larger than 131072 bytes"},
		"endless signatures":      {signedBy, func(s *fakeSource) { s.keep(make([][]byte, MaxSignatures+1)...) }, "more than 64 signatures"},
		"registry is down":        {sigstore, func(s *fakeSource) { s.fails[attachmentTag(testDigest())] = unreachable }, "connection refused"},
		"endless list":            {sigstore, func(s *fakeSource) { s.endless[attachmentTag(testDigest())] = true }, "larger than 1048576 bytes"},
		"list is no list":         {sigstore, func(s *fakeSource) { s.content[attachmentTag(testDigest())] = []byte("<html>") }, "signature manifest"},
		"no payload":              {sigstore, func(s *fakeSource) { delete(s.content, blob) }, "not found"},
		"endless payload":         {sigstore, func(s *fakeSource) { s.endless[blob] = true; delete(s.content, blob) }, "larger than"},
		"payload of other digest": {sigstore, func(s *fakeSource) { s.content[blob][0] = ' ' }, "content has digest"},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			src.keep(simpleSign(t, key, testRef, testDigest()))
			src.attach(t, testDigest(), attached{bytes.Clone(signed.payload), signed.annotations})
			tt.change(src)
			check(t, load(t, tt.policy, keys), src, tt.want)
		})
	}
}

// A failure of this machine is no rejection.
func TestNoTempDir(t *testing.T) {
	key, public := gpgKey(t, nil)
	src := newSource()
	src.keep(simpleSign(t, key, testRef, testDigest()))
	p, err := New(Config{
		Policy: []byte(signedBy), Keys: map[string][]byte{"/key": public}, Lookaside: []byte(testLookaside),
		TempDir: filepath.Join(t.TempDir(), "missing"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Check(t.Context(), testRef, testDigest(), src); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrRejected) {
		t.Errorf("error %v", err)
	}
}

// A question that was given up has no answer, whatever the signatures are worth.
func TestCanceled(t *testing.T) {
	key, public := gpgKey(t, nil)
	p := load(t, signedBy, map[string][]byte{"/key": public})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, identity := range []string{testRef, testRepo + ":v2"} {
		src := newSource()
		src.keep(simpleSign(t, key, identity, testDigest()))
		if err := p.Check(ctx, testRef, testDigest(), src); !errors.Is(err, context.Canceled) || errors.Is(err, ErrRejected) {
			t.Errorf("signed for %s: %v", identity, err)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	key, public := gpgKey(t, nil)
	p := load(t, signedBy, map[string][]byte{"/key": public})
	good, bad := newSource(), newSource()
	good.keep(simpleSign(t, key, testRef, testDigest()))
	bad.keep(simpleSign(t, key, testRepo+":v2", testDigest()))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { outcome(t, p.Check(t.Context(), testRef, testDigest(), good), "") })
		wg.Go(func() { outcome(t, p.Check(t.Context(), testRef, testDigest(), bad), "reject: ") })
	}
	wg.Wait()
}

// No text of an error has a key in it, however wrong the key is.
func TestKeysStayOutOfErrors(t *testing.T) {
	const hidden = "hidden-key-material"
	plain := "-----BEGIN PRIVATE KEY-----\n" + base64.StdEncoding.EncodeToString([]byte(hidden)) + "\n-----END PRIVATE KEY-----\n"
	for _, value := range []string{hidden, plain, base64.StdEncoding.EncodeToString([]byte(plain))} {
		for _, fields := range []string{
			`"keyData":` + quote(t, value), `"keyDatas":[` + quote(t, value) + `]`, `"keyPath":"/hidden"`,
			`"keyData":[` + quote(t, value) + `]`, `"fulcio":{"caData":` + quote(t, value) + `}`, `"fulcio":` + quote(t, value),
			`"rekorPublicKeyData":` + quote(t, value),
		} {
			for _, kind := range []string{kindSignedBy, kindSigstore} {
				_, err := New(Config{
					Policy:  []byte(policyOf(kind, `,"keyType":"GPGKeys",`+fields)),
					Keys:    map[string][]byte{"/hidden": []byte(value)},
					TempDir: t.TempDir(),
				})
				if err == nil || strings.Contains(err.Error(), hidden) || strings.Contains(err.Error(), value) ||
					strings.Contains(err.Error(), base64.StdEncoding.EncodeToString([]byte(hidden))) {
					t.Errorf("%s with %.40s: error %v", kind, fields, err)
				}
			}
		}
	}
}

func FuzzOpenPGPMessage(f *testing.F) {
	for _, name := range []string{"gnupg.sig", "gnupg-bzip2.sig", "gnupg-plain.sig"} {
		f.Add(read(f, name))
	}
	p, err := New(Config{
		Policy: []byte(signedBy), Keys: map[string][]byte{"/key": read(f, "gnupg.asc")},
		Lookaside: []byte(testLookaside), TempDir: f.TempDir(),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if message, err := unpack(data); err == nil && len(message) > max(MaxSignatureSize, len(data)) {
			t.Fatalf("%d bytes", len(message))
		}
		src := newSource()
		src.keep(data[:min(len(data), MaxSignatureSize)])
		if err := p.Check(t.Context(), testRef, testDigest(), src); err != nil && !errors.Is(err, ErrRejected) {
			t.Fatal(err)
		}
	})
}
