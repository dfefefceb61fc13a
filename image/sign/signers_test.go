// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotations of cosign.
const (
	annotationSignature   = "dev.cosignproject.cosign/signature"
	annotationBundle      = "dev.sigstore.cosign/bundle"
	annotationCertificate = "dev.sigstore.cosign/certificate"
	annotationChain       = "dev.sigstore.cosign/chain"
)

// payload is what a signature of either format signs.
func payload(t testing.TB, kind, identity string, d digest.Digest) []byte {
	t.Helper()
	data, err := json.Marshal(map[string]any{
		"critical": map[string]any{
			"type":     kind,
			"image":    map[string]string{"docker-manifest-digest": d.String()},
			"identity": map[string]string{"docker-reference": identity},
		},
		"optional": map[string]any{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// gpgKey returns a key pair and its armored public part.
func gpgKey(t testing.TB, config *packet.Config) (*openpgp.Entity, []byte) {
	t.Helper()
	fast := packet.Config{}
	if config != nil {
		fast = *config
	}
	fast.Algorithm = packet.PubKeyAlgoEdDSA // RSA keys take seconds on emulated machines
	entity, err := openpgp.NewEntity("test", "", "test@example.org", &fast)
	if err != nil {
		t.Fatal(err)
	}
	return entity, armored(t, openpgp.PublicKeyType, entity.Serialize)
}

func armored(t testing.TB, kind string, serialize func(io.Writer) error) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := armor.Encode(&buf, kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := serialize(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// gpgSign returns a signed OpenPGP message.
func gpgSign(t testing.TB, key *openpgp.Entity, config *packet.Config, text []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := openpgp.Sign(&buf, key, nil, config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// simpleSign returns a signature in the simple signing format.
func simpleSign(t testing.TB, key *openpgp.Entity, identity string, d digest.Digest) []byte {
	t.Helper()
	return gpgSign(t, key, nil, payload(t, "atomic container signature", identity, d))
}

// ecKey returns a key pair and its public part in PEM.
func ecKey(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// attached is a signature as cosign attaches it.
type attached struct {
	payload     []byte
	annotations map[string]string
}

// cosign signs what cosign signs. Its identity is a repository with cosign, a whole reference with skopeo.
func cosign(t testing.TB, key crypto.Signer, identity string, d digest.Digest) attached {
	t.Helper()
	text := payload(t, "cosign container image signature", identity, d)
	return attached{text, map[string]string{annotationSignature: cosignSignature(t, key, text)}}
}

func cosignSignature(t testing.TB, key crypto.Signer, text []byte) string {
	t.Helper()
	sum := sha256.Sum256(text)
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(sig)
}

// attachmentTag is where cosign puts the signatures of an image.
func attachmentTag(d digest.Digest) string {
	return testRepo + ":" + strings.Replace(d.String(), ":", "-", 1) + ".sig"
}

// lookasideURL is where the nth signature of the test image is, from 1.
func lookasideURL(n int) string {
	return fmt.Sprintf("%s/team/app@sha256=%s/signature-%d", testStore, testDigest().Encoded(), n)
}

// attach puts signatures beside an image.
func (s *fakeSource) attach(t testing.TB, d digest.Digest, signatures ...attached) {
	t.Helper()
	layers := make([]ocispec.Descriptor, len(signatures))
	for i, sig := range signatures {
		layers[i] = ocispec.Descriptor{
			MediaType: cosignPayload, Digest: digest.FromBytes(sig.payload), Size: int64(len(sig.payload)), Annotations: sig.annotations,
		}
		s.content[testRepo+"@"+layers[i].Digest.String()] = sig.payload
	}
	s.content[attachmentTag(d)] = signatureManifest(t, layers...)
}

// keep puts signatures into the lookaside store.
func (s *fakeSource) keep(signatures ...[]byte) {
	for i, sig := range signatures {
		s.content[lookasideURL(i+1)] = sig
	}
}

// policyOf returns a policy of one requirement; more are fields beside its type, with a comma before them.
func policyOf(kind, more string) string {
	return fmt.Sprintf(`{"default":[{"type":%q%s}]}`, kind, more)
}

// quote returns a JSON string.
func quote(t testing.TB, s string) string {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func b64(data []byte) string { return `"` + base64.StdEncoding.EncodeToString(data) + `"` }

// at returns a configuration with a clock.
func at(when time.Time) *packet.Config {
	return &packet.Config{Time: func() time.Time { return when }}
}

// asked returns how many requests there were whose name has a substring.
func (s *fakeSource) asked(substring string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if strings.Contains(r, substring) {
			n++
		}
	}
	return n
}
