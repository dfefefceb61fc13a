// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/keys"
)

// Every failure has its own words, leaves nothing behind, and shows no key.
func TestDecryptRefuses(t *testing.T) {
	all := parties(t)
	plain, _ := create(t, Options{Rootfs: rootfs(t)})
	tmp := t.TempDir()
	enc := filepath.Join(tmp, "enc")
	_, err := Encrypt(t.Context(), between(plain, enc), []Recipient{all["packet"].recipient, all["jwe"].recipient})
	check(t, err)
	wrong := new(KeyRing)
	writeFile(t, tmp, "wrong", bytes.Repeat([]byte{7}, 32))
	check(t, wrong.AddPacketKey(keyURI, filepath.Join(tmp, "wrong")))
	missing := new(KeyRing)
	check(t, missing.AddPacketKey("kbs:///a/b/c", filepath.Join(tmp, "wrong")))
	for name, tt := range map[string]struct {
		ring *KeyRing
		src  string
		kind error
		want string
	}{
		"wrong packet key":  {wrong, enc, ErrWrongKey, keyURI + " does not open"},
		"missing key":       {missing, enc, ErrNoKey, "it needs a private key of jwe or the key " + keyURI},
		"no key":            {new(KeyRing), enc, ErrNoKey, keyURI},
		"wrong private key": {all["jwe-ec"].ring(t), enc, ErrWrongKey, "jwe-ec does not open"},
		"pgp only":          {all["pgp"].ring(t), enc, ErrNoKey, keyURI},
		"not encrypted":     {all["packet"].ring(t), plain, nil, "no layer of the image is encrypted"},
		"HMAC":              {all["packet"].ring(t), forged(t, enc, "hmac"), decrypt.ErrUnauthentic, "HMAC"},
		"ciphertext":        {all["packet"].ring(t), forged(t, enc, "blob"), nil, "does not match its digest"},
		"diff_id":           {all["packet"].ring(t), forged(t, enc, "diffid"), nil, "does not have the diff_id"},
	} {
		dst := filepath.Join(tmp, "out", "plain")
		_, err := Decrypt(t.Context(), between(tt.src, dst), tt.ring)
		if err == nil || !strings.Contains(err.Error(), tt.want) || tt.kind != nil && !errors.Is(err, tt.kind) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if left, err := os.ReadDir(filepath.Dir(dst)); len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
}

// A certificate has a serial number to be known by, and without the certificate its key opens nothing.
func TestPKCS7NeedsCertificate(t *testing.T) {
	all := parties(t)
	plain, _ := create(t, Options{Rootfs: rootfs(t)})
	enc := filepath.Join(t.TempDir(), "enc")
	_, err := Encrypt(t.Context(), between(plain, enc), []Recipient{all["pkcs7"].recipient})
	check(t, err)
	_, err = Decrypt(t.Context(), between(enc, filepath.Join(t.TempDir(), "x")), all["jwe"].ring(t)) // the same key
	var hinted interface{ Hint() string }
	if !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), "pkcs7 serial 4711") || !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "certificate") {
		t.Errorf("%v", err)
	}
}

// forged copies an encrypted layout with something changed that its digests do not show, but for "blob".
func forged(t *testing.T, src, what string) string {
	t.Helper()
	l, m := readLayers(t, src)
	dst := filepath.Join(t.TempDir(), "forged")
	check(t, os.CopyFS(dst, os.DirFS(src)))
	out := &layout{dir: dst}
	switch what {
	case "hmac":
		annotation := `{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + strings.Repeat("A", 43) + `=","cipheroptions":{}}`
		m.Layers[0].Annotations[decrypt.PublicAnnotation] = encode(annotation)
	case "blob":
		data, err := os.ReadFile(l.path(m.Layers[0].Digest))
		check(t, err)
		data[len(data)/2] ^= 1
		check(t, os.WriteFile(out.path(m.Layers[0].Digest), data, 0o600))
	case "diffid":
		data, err := os.ReadFile(l.path(m.Config.Digest))
		check(t, err)
		var c ocispec.Image
		check(t, json.Unmarshal(data, &c))
		c.RootFS.DiffIDs[0] = "sha256:" + "0000000000000000000000000000000000000000000000000000000000000000"
		m.Config, err = out.writeJSON(ocispec.MediaTypeImageConfig, c)
		check(t, err)
	}
	desc, err := out.writeJSON(ocispec.MediaTypeImageManifest, m)
	check(t, err)
	check(t, out.finish(desc, ""))
	return dst
}

// A password opens a protected key, and a wrong one is said to be wrong.
func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	block, err := x509.EncryptPEMBlock(rand.Reader, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key), []byte("sesame"), x509.PEMCipherAES256) //nolint:staticcheck // what openssl's -traditional writes
	check(t, err)
	writeFile(t, dir, "key", pem.EncodeToMemory(block))
	writeFile(t, dir, "pkcs8", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}}))
	writeFile(t, dir, "text", []byte("SECRETTEXT"))
	for name, tt := range map[string]struct {
		file, password, want string
	}{
		"right": {"key", "sesame", ""}, "wrong": {"key", "open", "is wrong"}, "none": {"key", "", "wants a password"},
		"PKCS #8": {"pkcs8", "", "cannot be read"}, "text": {"text", "", "neither a private key"}, "absent": {"absent", "", "no such file"},
	} {
		var password *keys.Secret
		if tt.password != "" {
			password = keys.NewSecret([]byte(tt.password))
		}
		err := new(KeyRing).AddFile(filepath.Join(dir, tt.file), password)
		if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "SECRETTEXT")) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
