// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/containers/ocicrypt/blockcipher"
	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap"
	"github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/containers/ocicrypt/keywrap/pgp"
	"github.com/containers/ocicrypt/keywrap/pkcs7"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
)

// Where the annotations of an encrypted layer are, as ocicrypt and Confidential Containers have them.
const (
	keysOf    = "org.opencontainers.image.enc.keys."
	publicOf  = "org.opencontainers.image.enc.pubopts"
	coco      = keysOf + "provider.attestation-agent"
	privateOf = "kbs:///default/private-key/"
)

// scheme is a way to encrypt a layer key.
type scheme struct {
	name string
	// wrap returns the annotation of a layer key, nil for a layer that is not encrypted.
	wrap func(t *testing.T, private []byte) (name, value string)
}

// people has a key of each kind, and what the guest is given for it.
type people struct {
	jwe, x509, pgp []byte // public
	guest          map[string][]byte
}

func newPeople(t *testing.T) *people {
	t.Helper()
	p := &people{guest: map[string][]byte{keyURI: bytes.Repeat([]byte{7}, 32)}}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	p.guest[privateOf+"jwe"] = pkcs8(t, ec)
	public, err := x509.MarshalPKIXPublicKey(ec.Public())
	must(t, err)
	p.jwe = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})

	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	p.guest[privateOf+"pkcs7"] = pkcs8(t, key)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "guest"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	p.x509 = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})

	entity, err := openpgp.NewEntity("guest", "", "guest@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	must(t, err)
	var ring, secret bytes.Buffer
	must(t, entity.SerializePrivate(&secret, nil))
	must(t, entity.Serialize(&ring))
	p.pgp, p.guest[privateOf+"pgp"] = ring.Bytes(), secret.Bytes()
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pkcs8(t *testing.T, key crypto.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// schemes are those of docs/encrypted-images.md. The public keys' are made by ocicrypt, which skopeo and podman use.
func (p *people) schemes() []scheme {
	by := func(name string, wrapper keywrap.KeyWrapper, parameters map[string][][]byte) scheme {
		return scheme{name, func(t *testing.T, private []byte) (string, string) {
			t.Helper()
			wrapped, err := wrapper.WrapKeys(&config.EncryptConfig{Parameters: parameters}, private)
			must(t, err)
			return keysOf + name, base64.StdEncoding.EncodeToString(wrapped)
		}}
	}
	kbs := func(name, wrapType string, more map[string]any) scheme {
		return scheme{name, func(t *testing.T, private []byte) (string, string) {
			t.Helper()
			return coco, p.packet(t, private, wrapType, more)
		}}
	}
	v2 := map[string]any{"version": "0.1.0", "provider": "kbs", "provider_settings": map[string]any{}, "annotations": map[string]any{"about": "x"}}
	return []scheme{
		{name: "none"},
		kbs("kbs v1 A256GCM", "A256GCM", nil), kbs("kbs v2 A256CTR", "A256CTR", v2), // the other two: TestKnownAnswers of package decrypt
		by("jwe", jwe.NewKeyWrapper(), map[string][][]byte{"pubkeys": {p.jwe}}),
		by("pkcs7", pkcs7.NewKeyWrapper(), map[string][][]byte{"x509s": {p.x509}}),
		by("pgp", pgp.NewKeyWrapper(), map[string][][]byte{"gpg-pubkeyringfile": {p.pgp}, "gpg-recipients": {[]byte("guest@example.com")}}),
	}
}

// packet wraps a layer key as the key providers of Confidential Containers do.
func (p *people) packet(t *testing.T, private []byte, wrapType string, more map[string]any) string {
	t.Helper()
	block, err := aes.NewCipher(p.guest[keyURI])
	must(t, err)
	iv := make([]byte, map[string]int{"A256GCM": 12, "A256CTR": 16}[wrapType])
	_, err = rand.Read(iv)
	must(t, err)
	var wrapped []byte
	if wrapType == "A256GCM" {
		aead, err := cipher.NewGCM(block)
		must(t, err)
		wrapped = aead.Seal(nil, iv, private, nil)
	} else {
		wrapped = make([]byte, len(private))
		cipher.NewCTR(block, iv).XORKeyStream(wrapped, private)
	}
	fields := map[string]any{"kid": keyURI, "wrapped_data": wrapped, "iv": iv, "wrap_type": wrapType}
	maps.Copy(fields, more)
	data, err := json.Marshal(fields)
	must(t, err)
	return base64.StdEncoding.EncodeToString(data)
}

// seal puts a layer into a registry as a scheme has it.
func (s scheme) seal(t *testing.T, r *registrytest.Registry, kind string, plain []byte) built {
	t.Helper()
	if s.wrap == nil {
		return build(t, r, kind, plain, nil)
	}
	mediaType, compressed := compress(t, kind, plain)
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	must(t, err)
	reader, finish, err := handler.Encrypt(bytes.NewReader(compressed), blockcipher.AES256CTR)
	must(t, err)
	blob, err := io.ReadAll(reader)
	must(t, err)
	options, err := finish()
	must(t, err)
	options.Private.Digest = digest.FromBytes(compressed)
	private, err := json.Marshal(options.Private)
	must(t, err)
	public, err := json.Marshal(options.Public)
	must(t, err)
	name, value := s.wrap(t, private)
	desc := r.AddBlob(mediaType+"+encrypted", blob)
	desc.Annotations = map[string]string{name: value, publicOf: base64.StdEncoding.EncodeToString(public)}
	return built{desc, digest.FromBytes(plain), blob}
}

// publishFor publishes an image of one layer for an architecture, as OCI or Docker have it.
func publishFor(t *testing.T, r *registrytest.Registry, tag, arch string, l built, docker bool) ocispec.Descriptor {
	t.Helper()
	manifestType, configType := ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig
	if docker {
		manifestType, configType = dockerManifest, dockerConfig
		l.desc.MediaType = strings.NewReplacer(
			ocispec.MediaTypeImageLayerGzip, dockerLayer+".gzip", ocispec.MediaTypeImageLayerZstd, dockerLayer+".zstd", ocispec.MediaTypeImageLayer, dockerLayer,
		).Replace(l.desc.MediaType)
	}
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{Architecture: arch, OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.diffID}},
	})
	must(t, err)
	d := r.AddManifest(t, tag, manifestType, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": r.AddBlob(configType, config), "layers": []ocispec.Descriptor{l.desc},
	})
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return d
}

// TestRoundTrip is every compression x encryption x architecture x kind of manifest: what was packed is in the container,
// by a tag, by its digest, and through an index of both architectures.
func TestRoundTrip(t *testing.T) {
	needRoot(t)
	p := newPeople(t)
	keys := func(_ context.Context, uri string) ([]byte, error) {
		if p.guest[uri] == nil {
			return nil, ErrNoKey
		}
		return bytes.Clone(p.guest[uri]), nil
	}
	archs := []string{"s390x", "amd64"}
	for _, kind := range []string{"none", "gzip", "zstd"} {
		for _, scheme := range p.schemes() {
			for name, docker := range map[string]bool{"OCI": false, "Docker": true} {
				r := registrytest.New(t)
				manifests := make(map[string]ocispec.Descriptor)
				for _, arch := range archs {
					l := scheme.seal(t, r, kind, tarball(t, map[string]string{"f": "for " + arch, "large": strings.Repeat(arch, 10_000)}))
					manifests[arch] = publishFor(t, r, arch, arch, l, docker)
				}
				indexType := ocispec.MediaTypeImageIndex
				if docker {
					indexType = dockerList
				}
				r.AddManifest(t, "both", indexType, map[string]any{
					"schemaVersion": 2, "mediaType": indexType, "manifests": []ocispec.Descriptor{manifests["s390x"], manifests["amd64"]},
				})
				for _, arch := range archs {
					t.Run(strings.Join([]string{kind, scheme.name, name, arch}, " "), func(t *testing.T) {
						s, m := service(t, r, func(c *Config) {
							c.Arch, c.Keys = arch, keys
							c.PrivateKeys = []string{privateOf + "jwe", privateOf + "pkcs7", privateOf + "pgp"}
						})
						for id, tag := range map[string]string{"tag": arch, "digest": "@" + manifests[arch].Digest.String(), "index": "both"} {
							if err := mount(t.Context(), s, id, r.Reference(tag), "/"+id); err != nil {
								t.Fatalf("by %s: %v", id, err)
							}
							if got := m.read(t, "/"+id, "f"); got != "for "+arch {
								t.Errorf("by %s: f is %q", id, got)
							}
							if got := m.read(t, "/"+id, "large"); got != strings.Repeat(arch, 10_000) {
								t.Errorf("by %s: large has %d bytes", id, len(got))
							}
						}
					})
				}
			}
		}
	}
}
