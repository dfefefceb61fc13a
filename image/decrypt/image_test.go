// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/keys"
)

const (
	packetURI = "kbs:///default/image-key/1"
	otherURI  = "kbs:///default/image-key/2"
)

// keyURI names the private key of somebody whose key file is in testdata.
func keyURI(name string) string { return "kbs:///default/private-key/" + name }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func keyFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/keys", name))
	check(t, err)
	return data
}

// store is what a key provider has.
type store map[string][]byte

func (s store) get(_ context.Context, uri string) ([]byte, error) {
	if s[uri] == nil {
		return nil, decrypt.ErrNoKey
	}
	return bytes.Clone(s[uri]), nil
}

// guest has the private keys of people, in that order, and nothing else.
func guest(t testing.TB, names ...string) decrypt.Keys {
	t.Helper()
	s := make(store)
	var uris []string
	for _, n := range names {
		s[keyURI(n)] = keyFile(t, n+".key")
		uris = append(uris, keyURI(n))
	}
	return decrypt.Keys{ByURI: s.get, PrivateKeys: uris}
}

// recipient is one of imagecrypt's: a packet's URI, or a protocol and a name.
func recipient(t testing.TB, spec string) imagecrypt.Recipient {
	t.Helper()
	if strings.HasPrefix(spec, "kbs:") {
		return imagecrypt.Recipient{KeyURI: spec, Key: keys.NewSecret(packetKey(spec))}
	}
	protocol, name, _ := strings.Cut(spec, ":")
	suffix := map[string]string{imagecrypt.JWE: ".pub", imagecrypt.PKCS7: ".crt", imagecrypt.PGP: ".pub"}[protocol]
	return imagecrypt.Recipient{Protocol: protocol, Public: keyFile(t, name+suffix), Address: name + "@example.com"}
}

// packetKey is the key of a URI.
func packetKey(uri string) []byte { return bytes.Repeat([]byte{uri[len(uri)-1]}, imagecrypt.KeySize) }

func packetGuest(uris ...string) decrypt.Keys {
	s := make(store)
	for _, u := range uris {
		s[u] = packetKey(u)
	}
	return decrypt.Keys{ByURI: s.get}
}

// layer is an encrypted layer, and what it holds.
type layer struct {
	desc        ocispec.Descriptor
	blob, plain []byte
}

func onlyLayer(t testing.TB, layout string) (ocispec.Descriptor, []byte) {
	t.Helper()
	read := func(name string, into any) []byte {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(layout, name))
		check(t, err)
		if into != nil {
			check(t, json.Unmarshal(data, into))
		}
		return data
	}
	var index ocispec.Index
	read("index.json", &index)
	var manifest ocispec.Manifest
	read("blobs/sha256/"+index.Manifests[0].Digest.Encoded(), &manifest)
	return manifest.Layers[0], read("blobs/sha256/"+manifest.Layers[0].Digest.Encoded(), nil)
}

// encrypt makes an image and encrypts it as the build host does.
func encrypt(t testing.TB, content, compression string, recipients ...string) layer {
	t.Helper()
	dir := t.TempDir()
	rootfs, plain, out := filepath.Join(dir, "rootfs"), filepath.Join(dir, "plain"), filepath.Join(dir, "encrypted")
	check(t, os.Mkdir(rootfs, 0o755))
	check(t, os.WriteFile(filepath.Join(rootfs, "file"), []byte(content), 0o644))
	_, err := imagecrypt.FromRootfs(t.Context(), imagecrypt.Options{Rootfs: rootfs, Arch: "s390x", Compression: compression, Output: plain})
	check(t, err)
	var rs []imagecrypt.Recipient
	for _, r := range recipients {
		rs = append(rs, recipient(t, r))
	}
	_, err = imagecrypt.Encrypt(t.Context(), imagecrypt.CopyOptions{
		Source:      imagecrypt.Location{Transport: imagecrypt.OCI, Path: plain},
		Destination: imagecrypt.Location{Transport: imagecrypt.OCI, Path: out},
	}, rs)
	check(t, err)
	l := layer{}
	_, l.plain = onlyLayer(t, plain)
	l.desc, l.blob = onlyLayer(t, out)
	return l
}

// read decrypts the layer.
func read(ctx context.Context, keys decrypt.Keys, annotations map[string]string, blob []byte) ([]byte, error) {
	key, err := keys.Unwrap(ctx, annotations)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	r, err := key.Reader(bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// Whoever an image is encrypted for can read it, alone and among others, and nobody else.
func TestRecipients(t *testing.T) {
	all := []string{
		packetURI, otherURI, "jwe:alice", "jwe:bob", "jwe:carol", "jwe:dave", "pkcs7:alice", "pkcs7:bob", "pgp:erin",
	}
	guests := map[string]decrypt.Keys{"kbs:1": packetGuest(packetURI), "kbs:2": packetGuest(otherURI)}
	for _, name := range []string{"alice", "bob", "carol", "dave", "erin", "frank"} {
		guests[name] = guest(t, name)
	}
	for _, tt := range []struct {
		recipients []string
		open       []string
	}{
		{all, []string{"kbs:1", "kbs:2", "alice", "bob", "carol", "dave", "erin"}},
		{[]string{packetURI}, []string{"kbs:1"}},
		{[]string{packetURI, otherURI}, []string{"kbs:1", "kbs:2"}},
		{[]string{"jwe:alice"}, []string{"alice"}},
		{[]string{"jwe:carol"}, []string{"carol"}},
		{[]string{"jwe:dave", "jwe:bob"}, []string{"dave", "bob"}},
		{[]string{"pkcs7:bob"}, []string{"bob"}},
		{[]string{"pkcs7:alice", "pkcs7:bob"}, []string{"alice", "bob"}},
		{[]string{"pgp:erin"}, []string{"erin"}},
		{[]string{"pgp:frank"}, []string{"frank"}},
		{[]string{"jwe:alice", "pkcs7:bob", "pgp:frank"}, []string{"alice", "bob", "frank"}},
		{[]string{otherURI, "pgp:erin"}, []string{"kbs:2", "erin"}},
	} {
		t.Run(strings.Join(tt.recipients, ","), func(t *testing.T) {
			compressions := []string{imagecrypt.Gzip}
			if len(tt.recipients) == len(all) {
				compressions = append(compressions, imagecrypt.Zstd, imagecrypt.None)
			}
			for _, compression := range compressions {
				l := encrypt(t, strings.Repeat("content", 5000), compression, tt.recipients...)
				for name, keys := range guests {
					plain, err := read(t.Context(), keys, l.desc.Annotations, l.blob)
					switch want := slices.Contains(tt.open, name); {
					case want && (err != nil || !bytes.Equal(plain, l.plain)):
						t.Errorf("%s, %s: %d bytes, %v", compression, name, len(plain), err)
					case !want && errors.Is(err, decrypt.ErrNoKey) == errors.Is(err, decrypt.ErrWrongKey):
						t.Errorf("%s, %s: %v", compression, name, err)
					}
				}
			}
		})
	}
}

// Private keys are tried in their order, whatever their kinds, and only until one opens.
func TestPrivateKeysInOrder(t *testing.T) {
	l := encrypt(t, "x", imagecrypt.Gzip, "jwe:bob", "pkcs7:alice")
	keys := guest(t, "erin", "carol", "alice", "bob")
	byURI := keys.ByURI
	var asked []string
	var given [][]byte
	keys.ByURI = func(ctx context.Context, uri string) ([]byte, error) {
		key, err := byURI(ctx, uri)
		asked, given = append(asked, uri), append(given, key)
		return key, err
	}
	if _, err := read(t.Context(), keys, l.desc.Annotations, l.blob); err != nil {
		t.Error(err)
	}
	if want := []string{keyURI("erin"), keyURI("carol"), keyURI("alice")}; !slices.Equal(asked, want) {
		t.Errorf("asked for %v, want %v", asked, want)
	}
	for i, key := range given {
		if !bytes.Equal(key, make([]byte, len(key))) {
			t.Errorf("%s was not wiped", asked[i])
		}
	}
}

// What a key is stored as does not matter, unless it is of no use at all, which is said without quoting it.
func TestKeyForms(t *testing.T) {
	jwe := encrypt(t, "x", imagecrypt.Gzip, "jwe:alice", "jwe:carol")
	pgp := encrypt(t, "x", imagecrypt.Gzip, "pgp:erin", "pgp:erin")
	der := func(name string) []byte {
		block, _ := pem.Decode(keyFile(t, name))
		return block.Bytes
	}
	rsaKey, err := x509.ParsePKCS8PrivateKey(der("alice.key"))
	check(t, err)
	pkcs8, err := x509.ParseECPrivateKey(der("carol.key"))
	check(t, err)
	ecPKCS8, err := x509.MarshalPKCS8PrivateKey(pkcs8)
	check(t, err)
	jwk := func(key any) []byte {
		data, err := jose.JSONWebKey{Key: key, KeyID: "x"}.MarshalJSON()
		check(t, err)
		return data
	}
	for name, tt := range map[string]struct {
		l    layer
		key  []byte
		want string
	}{
		"RSA, PEM":               {jwe, keyFile(t, "alice.key"), ""},
		"RSA, PKCS #8":           {jwe, der("alice.key"), ""},
		"RSA, JWK":               {jwe, jwk(rsaKey), ""},
		"RSA after certificate":  {jwe, slices.Concat(keyFile(t, "alice.crt"), keyFile(t, "alice.key")), ""},
		"curve, PEM":             {jwe, keyFile(t, "carol.key"), ""},
		"curve, SEC 1":           {jwe, der("carol.key"), ""},
		"curve, PKCS #8":         {jwe, ecPKCS8, ""},
		"curve, JWK":             {jwe, jwk(pkcs8), ""},
		"PGP ring":               {pgp, keyFile(t, "erin.key"), ""},
		"PGP ring of two":        {pgp, slices.Concat(keyFile(t, "grace.key"), keyFile(t, "erin.key")), ""},
		"RSA with passphrase":    {jwe, keyFile(t, "locked.key"), "is protected by a passphrase, which keys of a guest cannot have"},
		"PKCS #8 and passphrase": {jwe, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("SECRET")}), "is protected by a passphrase"},
		"PGP with passphrase":    {pgp, keyFile(t, "grace.key"), "is protected by a passphrase"},
		"PGP public":             {pgp, keyFile(t, "erin.pub"), "is a ring of PGP's without private keys"},
		"PGP damaged":            {pgp, keyFile(t, "erin.key")[:900], "is no ring of PGP's private keys"},
		"RSA public":             {jwe, keyFile(t, "alice.pub"), "holds no private key in PEM"},
		"JWK public":             {jwe, jwk(pkcs8.Public()), "is not a private key of RSA or an elliptic curve"},
		"JWK symmetric":          {jwe, jwk([]byte("SECRET")), "is not a private key of RSA or an elliptic curve"},
		"JWK damaged":            {jwe, []byte(`{"kty":"SECRET"}`), "is no JWK"},
		"pkcs11":                 {jwe, []byte("pkcs11:\n  uri: SECRET\n"), "is one of a pkcs11 token, which is not supported in this build"},
		"text":                   {jwe, []byte("SECRET"), "is neither a key of RSA"},
		"spaces":                 {jwe, []byte("  "), "is empty"},
		"too large":              {jwe, make([]byte, 256<<10+1), "is larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			const uri = "kbs:///a/b/c"
			keys := decrypt.Keys{ByURI: store{uri: tt.key}.get, PrivateKeys: []string{uri}}
			plain, err := read(t.Context(), keys, tt.l.desc.Annotations, tt.l.blob)
			if tt.want == "" && (err != nil || !bytes.Equal(plain, tt.l.plain)) {
				t.Errorf("%d bytes, %v", len(plain), err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), "private key "+uri+" "+tt.want) || strings.Contains(err.Error(), "SECRET")) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// Every failure names the key, and is of the right kind.
func TestKeyErrors(t *testing.T) {
	l := encrypt(t, "x", imagecrypt.Gzip, "jwe:alice", "pgp:erin")
	both := encrypt(t, "x", imagecrypt.Gzip, packetURI, "pkcs7:alice")
	broken := errors.New("provider is not reachable")
	missing := guest(t, "alice")
	missing.PrivateKeys = []string{keyURI("zoe"), keyURI("yves")}
	unreachable := guest(t, "alice")
	unreachable.ByURI = func(context.Context, string) ([]byte, error) { return nil, broken }
	wrongPacket := guest(t, "carol")
	wrongPacket.ByURI = store{packetURI: packetKey(otherURI)}.get
	wrongPacket.PrivateKeys = nil
	for name, tt := range map[string]struct {
		l    layer
		keys decrypt.Keys
		kind error
		want string
	}{
		"none configured":   {l, decrypt.Keys{ByURI: store{}.get}, decrypt.ErrNoKey, "encrypted for jwe, pgp, and this guest has no private keys"},
		"missing":           {l, missing, decrypt.ErrNoKey, "no key " + keyURI("zoe") + " in this guest\nno key " + keyURI("yves")},
		"wrong RSA":         {l, guest(t, "bob"), decrypt.ErrWrongKey, "private key " + keyURI("bob") + " of this guest does not open what the layer is encrypted with (jwe)"},
		"wrong curve":       {l, guest(t, "dave"), decrypt.ErrWrongKey, keyURI("dave")},
		"wrong ring":        {l, guest(t, "frank"), decrypt.ErrWrongKey, keyURI("frank") + " of this guest does not open what the layer is encrypted with (pgp)"},
		"another kind":      {both, guest(t, "carol", "erin"), decrypt.ErrNoKey, "none of this guest's private keys " + keyURI("carol") + ", " + keyURI("erin") + " is for that"},
		"unreachable":       {l, unreachable, broken, "get key " + keyURI("alice") + ": provider is not reachable"},
		"wrong packet key":  {both, wrongPacket, decrypt.ErrWrongKey, packetURI},
		"not a URI":         {l, decrypt.Keys{PrivateKeys: []string{"file:///key"}}, nil, `private key for image layers: "file:///key" is not a key URI`},
		"too many":          {l, decrypt.Keys{PrivateKeys: slices.Repeat([]string{packetURI}, decrypt.MaxPrivateKeys+1)}, nil, "at most 16"},
		"missing and wrong": {both, guest(t, "bob"), decrypt.ErrWrongKey, "no key " + packetURI},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := tt.keys.Unwrap(t.Context(), tt.l.desc.Annotations)
			if key != nil || err == nil || !strings.Contains(err.Error(), tt.want) || tt.kind != nil && !errors.Is(err, tt.kind) {
				t.Fatalf("%v, want %q (%v)", err, tt.want, tt.kind)
			}
			if tt.kind != nil && errors.Is(err, decrypt.ErrNoKey) && errors.Is(err, decrypt.ErrWrongKey) {
				t.Error("a key is both missing and wrong")
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := guest(t, "alice").Unwrap(ctx, l.desc.Annotations); !errors.Is(err, context.Canceled) {
		t.Errorf("after its end: %v", err)
	}
}
