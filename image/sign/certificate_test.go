// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package sign

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

const (
	issuer = "https://issuer.example"
	email  = "builder@example.org"
)

// bundle returns Rekor's promise, made at a time, that it has logged a signature of a key or certificate.
func bundle(t *testing.T, rekor *ecdsa.PrivateKey, s attached, keyOrCert []byte, when time.Time) string {
	t.Helper()
	sum := sha256.Sum256(s.payload)
	body, err := json.Marshal(map[string]any{"kind": "hashedrekord", "apiVersion": "0.0.1", "spec": map[string]any{
		"data": map[string]any{"hash": map[string]string{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}},
		"signature": map[string]any{
			"content":   s.annotations[annotationSignature],
			"publicKey": map[string]any{"content": keyOrCert},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	// With sorted keys and no spaces this is its canonical form, which is what Rekor signs.
	entry, err := json.Marshal(map[string]any{
		"body": base64.StdEncoding.EncodeToString(body), "integratedTime": when.Unix(), "logIndex": 1, "logID": "00",
	})
	if err != nil {
		t.Fatal(err)
	}
	sum = sha256.Sum256(entry)
	set, err := ecdsa.SignASN1(rand.Reader, rekor, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]any{"SignedEntryTimestamp": set, "Payload": json.RawMessage(entry)})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRekor(t *testing.T) {
	key, public := ecKey(t)
	rekor, rekorPublic := ecKey(t)
	stranger, strangerPublic := ecKey(t)
	keys := map[string][]byte{"/key": public, "/rekor": rekorPublic, "/stranger": strangerPublic}
	logged := func(log *ecdsa.PrivateKey) attached {
		s := cosign(t, key, testRef, testDigest())
		s.annotations[annotationBundle] = bundle(t, log, s, public, time.Now())
		return s
	}
	swapped := cosign(t, key, testRef, testDigest()) // a signature that was not logged, with another one's promise
	swapped.annotations[annotationBundle] = logged(rekor).annotations[annotationBundle]
	broken := logged(rekor)
	broken.annotations[annotationBundle] = strings.Repeat("[", 9000)
	for name, tt := range map[string]struct {
		fields    string
		signature attached
		want      string
	}{
		"logged":        {`"rekorPublicKeyPath":"/rekor"`, logged(rekor), ""},
		"one of logs":   {`"rekorPublicKeyPaths":["/stranger","/rekor"]`, logged(rekor), ""},
		"plain PEM":     {`"rekorPublicKeyData":` + quote(t, string(rekorPublic)), logged(rekor), ""},
		"datas":         {`"rekorPublicKeyDatas":[` + b64(rekorPublic) + `]`, logged(rekor), ""},
		"not logged":    {`"rekorPublicKeyPath":"/rekor"`, cosign(t, key, testRef, testDigest()), "reject: missing " + annotationBundle},
		"another log":   {`"rekorPublicKeyPath":"/rekor"`, logged(stranger), "reject: "},
		"swapped":       {`"rekorPublicKeyPath":"/rekor"`, swapped, "reject: signature in Rekor SET does not match"},
		"broken bundle": {`"rekorPublicKeyPath":"/rekor"`, broken, "reject: "},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			src.attach(t, testDigest(), tt.signature)
			check(t, load(t, policyOf(kindSigstore, `,"keyPath":"/key",`+tt.fields), keys), src, tt.want)
		})
	}
}

// authority makes certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.key, _ = ecKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.pem = issue(t, template, template, a.key, a.key)
	return a
}

func issue(t *testing.T, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) (*x509.Certificate, []byte) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// leaf returns a certificate for ten minutes around a time, with the issuer as Fulcio records it.
func (a *authority) leaf(t *testing.T, key *ecdsa.PrivateKey, when time.Time, email, issuer string) []byte {
	t.Helper()
	_, data := issue(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: when.Add(-5 * time.Minute), NotAfter: when.Add(5 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		EmailAddresses:  []string{email},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(issuer)}},
	}, a.cert, key, a.key)
	return data
}

func TestFulcio(t *testing.T) {
	key, _ := ecKey(t)
	rekor, rekorPublic := ecKey(t)
	ca, stranger := newAuthority(t), newAuthority(t)
	then := time.Now().Add(-6 * time.Hour) // the certificate's day is over, and it was not when it signed
	signedBy := func(cert []byte, when time.Time) attached {
		s := cosign(t, key, testRef, testDigest())
		s.annotations[annotationCertificate] = string(cert)
		s.annotations[annotationBundle] = bundle(t, rekor, s, cert, when)
		return s
	}
	good := signedBy(ca.leaf(t, key, then, email, issuer), then)
	other, _ := ecKey(t)
	chain := signedBy(ca.leaf(t, key, then, email, issuer), then)
	chain.annotations[annotationChain] = "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"
	for name, tt := range map[string]struct {
		signature attached
		want      string
	}{
		"good":           {good, ""},
		"too late":       {signedBy(ca.leaf(t, key, then, email, issuer), then.Add(time.Hour)), "reject: "},
		"another email":  {signedBy(ca.leaf(t, key, then, "evil@example.org", issuer), then), "reject: Required email"},
		"another issuer": {signedBy(ca.leaf(t, key, then, email, "https://evil.example"), then), "reject: Unexpected Fulcio OIDC issuer"},
		"another CA":     {signedBy(stranger.leaf(t, key, then, email, issuer), then), "reject: "},
		"another key":    {signedBy(ca.leaf(t, other, then, email, issuer), then), "reject: "},
		"no certificate": {cosign(t, key, testRef, testDigest()), "reject: missing"},
		"broken chain":   {chain, "reject: "},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			src.attach(t, testDigest(), tt.signature)
			policy := policyOf(kindSigstore, `,"fulcio":{"caPath":"/ca","oidcIssuer":"`+issuer+`","subjectEmail":"`+email+`"},"rekorPublicKeyPath":"/rekor"`)
			check(t, load(t, policy, map[string][]byte{"/ca": ca.pem, "/rekor": rekorPublic}), src, tt.want)
		})
	}
	for fields, want := range map[string]string{
		`"fulcio":{"caPath":"/ca","oidcIssuer":"i","subjectEmail":"e"}`:                                                  "rekor",
		`"fulcio":{"caPath":"/ca","subjectEmail":"e"},"rekorPublicKeyPath":"/rekor"`:                                     "oidcIssuer",
		`"fulcio":{"oidcIssuer":"i","subjectEmail":"e"},"rekorPublicKeyPath":"/rekor"`:                                   "caPath",
		`"fulcio":{"caPath":"/ca","caData":"eA==","oidcIssuer":"i","subjectEmail":"e"}`:                                  "both caPath and caData",
		`"keyPath":"/rekor","fulcio":{"caPath":"/ca","oidcIssuer":"i","subjectEmail":"e"},"rekorPublicKeyPath":"/rekor"`: "fulcio",
	} {
		_, err := New(Config{
			Policy: []byte(policyOf(kindSigstore, `,`+fields)), Keys: map[string][]byte{"/ca": ca.pem, "/rekor": rekorPublic}, TempDir: t.TempDir(),
		})
		outcome(t, err, want)
	}
}

func TestPKI(t *testing.T) {
	key, _ := ecKey(t)
	ca, stranger := newAuthority(t), newAuthority(t)
	signedBy := func(cert []byte) attached {
		s := cosign(t, key, testRef, testDigest())
		s.annotations[annotationCertificate] = string(cert)
		return s
	}
	for name, tt := range map[string]struct {
		signature attached
		want      string
	}{
		"good":          {signedBy(ca.leaf(t, key, time.Now(), email, issuer)), ""},
		"expired":       {signedBy(ca.leaf(t, key, time.Now().Add(-time.Hour), email, issuer)), "reject: "},
		"another email": {signedBy(ca.leaf(t, key, time.Now(), "evil@example.org", issuer)), "reject: "},
		"another CA":    {signedBy(stranger.leaf(t, key, time.Now(), email, issuer)), "reject: "},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			src.attach(t, testDigest(), tt.signature)
			policy := policyOf(kindSigstore, `,"pki":{"caRootsData":`+quote(t, string(ca.pem))+`,"subjectEmail":"`+email+`"}`)
			check(t, load(t, policy, nil), src, tt.want)
		})
	}
}
