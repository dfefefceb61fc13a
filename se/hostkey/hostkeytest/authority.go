// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package hostkeytest makes host keys, their documents and the chain that signs them, as IBM's are, for tests and
// demonstrations. Nobody trusts the root.
package hostkeytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Issuer is a certificate and its key.
type Issuer struct {
	Certificate *x509.Certificate
	Key         *rsa.PrivateKey
}

// Authority is a chain down to the host key signing key.
type Authority struct {
	Root, Intermediate, Signing *Issuer
	// Now is the time around which everything is valid.
	Now time.Time
}

// SigningSubject is the subject of IBM's host key signing key, with the locality of today.
func SigningSubject() pkix.Name {
	return subject("Armonk")
}

func subject(locality string) pkix.Name {
	attribute := func(id int, value string) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, id}, Value: value}
	}
	const company = "International Business Machines Corporation"
	return pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		attribute(6, "US"), attribute(8, "New York"), attribute(7, locality), attribute(10, company),
		attribute(11, "IBM Z Host Key Signing Service"), attribute(3, company),
	}}
}

// Validity of what is made: from a day before to a month after now.
const (
	before = 24 * time.Hour
	after  = 30 * 24 * time.Hour
)

// New makes a chain with RSA keys of 2048 bits. change, if not nil, alters the template of each certificate; its name
// is "root", "intermediate" or "signing".
func New(now time.Time, change func(name string, template *x509.Certificate)) (*Authority, error) {
	a := &Authority{Now: now.Truncate(time.Second)}
	ca := func(cn string) *x509.Certificate {
		return &x509.Certificate{
			Subject:               pkix.Name{Country: []string{"US"}, Organization: []string{"Cloister demonstration, trusted by nobody"}, CommonName: cn},
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		}
	}
	signing := &x509.Certificate{
		Subject: SigningSubject(), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	for _, step := range []struct {
		name     string
		to       **Issuer
		template *x509.Certificate
		parent   **Issuer
	}{
		{"root", &a.Root, ca("Demonstration root CA"), nil},
		{"intermediate", &a.Intermediate, ca("Demonstration code signing CA"), &a.Root},
		{"signing", &a.Signing, signing, &a.Intermediate},
	} {
		if change != nil {
			change(step.name, step.template)
		}
		var parent *Issuer
		if step.parent != nil {
			parent = *step.parent
		}
		issuer, err := a.issue(step.template, parent)
		if err != nil {
			return nil, fmt.Errorf("make %s certificate: %w", step.name, err)
		}
		*step.to = issuer
	}
	return a, nil
}

// issue makes a key and its certificate; without parent it signs itself.
func (a *Authority) issue(template *x509.Certificate, parent *Issuer) (*Issuer, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	template.SubjectKeyId = id[:20]
	out := &Issuer{Key: key}
	if parent == nil {
		parent = &Issuer{Certificate: template, Key: key}
	}
	der, err := a.sign(template, parent, key.Public())
	if err != nil {
		return nil, err
	}
	out.Certificate, err = x509.ParseCertificate(der)
	return out, err
}

func (a *Authority) sign(template *x509.Certificate, parent *Issuer, public any) ([]byte, error) {
	if template.SerialNumber == nil {
		serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
		if err != nil {
			return nil, err
		}
		template.SerialNumber = serial
	}
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = a.Now.Add(-before), a.Now.Add(after)
	}
	if template.SignatureAlgorithm == x509.UnknownSignatureAlgorithm {
		template.SignatureAlgorithm = x509.SHA512WithRSA
	}
	return x509.CreateCertificate(rand.Reader, template, parent.Certificate, public, parent.Key)
}

// NewHostKey makes a host key.
func NewHostKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P521(), rand.Reader) }

// Document makes the document of a public key. change, if not nil, alters the template.
func (a *Authority) Document(public any, change func(*x509.Certificate)) ([]byte, error) {
	t := &x509.Certificate{
		Subject: pkix.Name{
			Country: []string{"US"}, Province: []string{"New York"}, Locality: []string{"Armonk"},
			Organization: []string{"International Business Machines Corporation"}, OrganizationalUnit: []string{"IBM Z Host Key"},
			CommonName: "International Business Machines Corporation",
		},
		KeyUsage: x509.KeyUsageKeyAgreement,
	}
	if change != nil {
		change(t)
	}
	der, err := a.sign(t, a.Signing, public)
	if err != nil {
		return nil, fmt.Errorf("make host key document: %w", err)
	}
	return encode("CERTIFICATE", der), nil
}

// CRL makes the revocation list of an issuer. change, if not nil, alters the template.
func (a *Authority) CRL(issuer *Issuer, change func(*x509.RevocationList), revoked ...*big.Int) ([]byte, error) {
	t := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: a.Now.Add(-before), NextUpdate: a.Now.Add(after), SignatureAlgorithm: x509.SHA512WithRSA}
	for _, serial := range revoked {
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: a.Now})
	}
	if change != nil {
		change(t)
	}
	// The signing key signs lists though its certificate does not say so; the standard library would refuse.
	parent := *issuer.Certificate
	parent.KeyUsage |= x509.KeyUsageCRLSign
	der, err := x509.CreateRevocationList(rand.Reader, t, &parent, issuer.Key)
	if err != nil {
		return nil, fmt.Errorf("make revocation list: %w", err)
	}
	return encode("X509 CRL", der), nil
}

// Revoke makes the signing key's revocation list with the document in a file on it.
func (a *Authority) Revoke(document string) ([]byte, error) {
	data, err := os.ReadFile(document)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM", document)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	return a.CRL(a.Signing, nil, cert.SerialNumber)
}

// PEM returns the certificate in PEM form.
func (i *Issuer) PEM() []byte { return encode("CERTIFICATE", i.Certificate.Raw) }

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Files are what WriteFiles has written.
type Files struct {
	// Document is the host key document, HostKey its private key (PKCS #8), which on a real machine nobody has.
	Document, HostKey string
	// Certificates are those of the signing key and the intermediate authority; Root is trusted.
	Certificates []string
	Root         string
	// CRLs are the revocation lists of root, intermediate authority and signing key.
	CRLs []string
}

// WriteFiles makes a host key and writes it with its document and all that verifies it into a folder.
func (a *Authority) WriteFiles(dir string) (*Files, error) {
	key, err := NewHostKey()
	if err != nil {
		return nil, err
	}
	document, err := a.Document(key.Public(), nil)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	f := &Files{
		Document: in("HKD.crt"), HostKey: in("host.key"), Root: in("root-ca.crt"),
		Certificates: []string{in("ibm-signing.crt"), in("intermediate-ca.crt")},
		CRLs:         []string{in("root-ca.crl"), in("intermediate-ca.crl"), in("ibm-signing.crl")},
	}
	files := map[string][]byte{
		f.Document: document, f.HostKey: encode("PRIVATE KEY", private), f.Root: a.Root.PEM(),
		f.Certificates[0]: a.Signing.PEM(), f.Certificates[1]: a.Intermediate.PEM(),
	}
	for n, issuer := range []*Issuer{a.Root, a.Intermediate, a.Signing} {
		if files[f.CRLs[n]], err = a.CRL(issuer, nil); err != nil {
			return nil, err
		}
	}
	for path, data := range files {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, err
		}
	}
	return f, nil
}
