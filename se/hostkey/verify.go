// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package hostkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// VerifierOptions are what documents are verified with.
type VerifierOptions struct {
	// Certificates are files with IBM's signing key certificate and the intermediate certificates, PEM or DER. Revocation
	// lists among them are used as well.
	Certificates [][]byte
	// CRLs are files with revocation lists.
	CRLs [][]byte
	// Roots are files with trusted root certificates; none means those of the system.
	Roots [][]byte
	// Now is the time of the verification; zero means now.
	Now time.Time
}

// Verifier verifies documents. Its zero value verifies none.
type Verifier struct {
	signing *x509.Certificate
	crls    []*x509.RevocationList
	now     time.Time
}

// Lengths of a chain from the signing key to the root: there may be two intermediate certificates.
const (
	minChain = 2
	maxChain = 4
)

// NewVerifier checks the chain of the signing key: to a trusted root, valid now, strong, and not revoked by a valid
// revocation list for each link. Errors are *VerifyError where the inputs could be read.
func NewVerifier(o VerifierOptions) (*Verifier, error) {
	v := &Verifier{now: o.Now}
	if v.now.IsZero() {
		v.now = time.Now()
	}
	certs, err := v.read(o.Certificates, "certificate")
	if err != nil {
		return nil, err
	}
	if extra, err := v.read(o.CRLs, "revocation list"); err != nil {
		return nil, err
	} else if len(extra) > 0 {
		return nil, errors.New("a certificate was given as revocation list")
	}
	roots, err := v.roots(o.Roots)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	var signing []*x509.Certificate
	for _, c := range certs {
		if isSigningKey(&c.Subject) {
			signing = append(signing, c)
		} else {
			pool.AddCert(c)
		}
	}
	switch len(signing) {
	case 0:
		return nil, verifyError("signing key", ErrNoSigningKey, "")
	case 1:
	default:
		return nil, verifyError("signing key", ErrManySigningKeys, "")
	}
	if err := v.checkChain(signing[0], pool, roots); err != nil {
		return nil, err
	}
	v.signing = signing[0]
	return v, nil
}

// read collects the certificates of files, and keeps their revocation lists.
func (v *Verifier) read(files [][]byte, what string) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for n, data := range files {
		certs, crls, err := parseFile(data)
		if err != nil {
			return nil, fmt.Errorf("%s file %d: %w", what, n+1, err)
		}
		if len(certs)+len(crls) == 0 {
			return nil, fmt.Errorf("%s file %d: nothing of that kind in it", what, n+1)
		}
		all, v.crls = append(all, certs...), append(v.crls, crls...)
	}
	return all, nil
}

func (v *Verifier) roots(files [][]byte) (*x509.CertPool, error) {
	if len(files) == 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("read the system's root certificates: %w", err)
		}
		return pool, nil
	}
	certs, err := v.read(files, "root certificate")
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

// checkChain verifies the signing key. One chain that holds is enough.
func (v *Verifier) checkChain(signing *x509.Certificate, intermediates, roots *x509.CertPool) error {
	chains, err := signing.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: v.now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return verifyError(name(signing), ErrChain, "%w", err)
	}
	err = verifyError(name(signing), ErrChain, "it is its own root")
	for _, chain := range chains {
		if len(chain) < minChain || len(chain) > maxChain {
			continue
		}
		if err = v.checkLinks(chain); err == nil {
			return nil
		}
	}
	return err
}

func (v *Verifier) checkLinks(chain []*x509.Certificate) error {
	for n, cert := range chain[:len(chain)-1] {
		if err := checkStrength(cert, true); err != nil {
			return err
		}
		issuer := chain[n+1]
		if err := v.checkRevocation(cert, issuer, func(crl *x509.RevocationList) bool {
			return bytes.Equal(crl.RawIssuer, issuer.RawSubject) && crl.CheckSignatureFrom(issuer) == nil
		}); err != nil {
			return err
		}
	}
	return checkStrength(chain[len(chain)-1], false)
}

// Verify checks that the document is strong, valid now, signed by the signing key, and not revoked by a valid
// revocation list of the signing key.
func (v *Verifier) Verify(d *Document) error {
	if v.signing == nil {
		return verifyError("signing key", ErrNoSigningKey, "")
	}
	c := d.Certificate
	if err := checkStrength(c, true); err != nil {
		return err
	}
	switch {
	case v.now.After(c.NotAfter):
		return verifyError(name(c), ErrExpired, "on %s", c.NotAfter.Format(time.RFC3339))
	case v.now.Before(c.NotBefore):
		return verifyError(name(c), ErrNotYetValid, "before %s", c.NotBefore.Format(time.RFC3339))
	case len(c.UnhandledCriticalExtensions) > 0:
		return verifyError(name(c), ErrUsage, "unknown critical extension %v", c.UnhandledCriticalExtensions[0])
	case c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageKeyAgreement == 0:
		return verifyError(name(c), ErrUsage, "a host key is for key agreement")
	case len(c.AuthorityKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, v.signing.SubjectKeyId):
		return verifyError(name(c), ErrAuthority, "authority key id %x, it has %x", c.AuthorityKeyId, v.signing.SubjectKeyId)
	}
	// Not CheckSignatureFrom: the signing key's certificate is none of an authority, so that it would refuse.
	if err := v.signing.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return verifyError(name(c), ErrSignature, "%w", err)
	}
	return v.checkRevocation(c, v.signing, func(crl *x509.RevocationList) bool {
		return sameName(crl.Issuer, v.signing.Subject) &&
			v.signing.CheckSignature(crl.SignatureAlgorithm, crl.RawTBSRevocationList, crl.Signature) == nil
	})
}

// SigningKey returns the subject of the signing key that documents were verified with.
func (v *Verifier) SigningKey() string {
	if v.signing == nil {
		return ""
	}
	return name(v.signing)
}

// name returns a certificate's name for an error.
func name(c *x509.Certificate) string { return fmt.Sprintf("certificate %q", c.Subject.String()) }

// weakHashes are hashes with less than 112 bits of security against collisions.
var weakHashes = map[x509.SignatureAlgorithm]bool{
	x509.UnknownSignatureAlgorithm: true,
	x509.MD2WithRSA:                true, x509.MD5WithRSA: true, x509.SHA1WithRSA: true, x509.DSAWithSHA1: true,
	x509.ECDSAWithSHA1: true, x509.DSAWithSHA256: true,
}

// checkStrength demands 112 bits of security of a key, and of the signature if that counts: of a root it does not.
func checkStrength(c *x509.Certificate, signature bool) error {
	if signature && weakHashes[c.SignatureAlgorithm] {
		return verifyError(name(c), ErrWeak, "signature %s", c.SignatureAlgorithm)
	}
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() < 2048 {
			return verifyError(name(c), ErrWeak, "RSA key of %d bits", key.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if n := key.Curve.Params().BitSize; n < 224 {
			return verifyError(name(c), ErrWeak, "elliptic curve of %d bits", n)
		}
	default:
		return verifyError(name(c), ErrWeak, "key of an unknown kind")
	}
	return nil
}
