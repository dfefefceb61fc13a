// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package hostkey

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Extensions of revocation lists (RFC 5280, section 5.2).
var (
	oidAuthorityKey      = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidCRLNumber         = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
)

// checkRevocation looks for revocation lists of the issuer. A list that is not valid counts as none; of several that
// are, none may name the certificate.
func (v *Verifier) checkRevocation(cert, issuer *x509.Certificate, issued func(*x509.RevocationList) bool) error {
	found := false
	var why error // of the last list of this issuer that is not valid
	for _, crl := range v.crls {
		if len(crl.AuthorityKeyId) > 0 && len(issuer.SubjectKeyId) > 0 && !bytes.Equal(crl.AuthorityKeyId, issuer.SubjectKeyId) {
			continue
		}
		if !issued(crl) {
			continue
		}
		if err := v.usable(crl, cert); err != nil {
			why = err
			continue
		}
		for _, entry := range crl.RevokedCertificateEntries {
			if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 {
				return verifyError(name(cert), ErrRevoked, "on %s", entry.RevocationTime.Format(time.RFC3339))
			}
		}
		found = true
	}
	switch {
	case found:
		return nil
	case why != nil:
		return verifyError(name(cert), ErrNoCRL, "that of %s: %w", name(issuer), why)
	default:
		return verifyError(name(cert), ErrNoCRL, "none that %s has signed was given", name(issuer))
	}
}

// usable says whether a list is valid now and complete for the certificate.
func (v *Verifier) usable(crl *x509.RevocationList, cert *x509.Certificate) error {
	switch {
	case v.now.Before(crl.ThisUpdate):
		return fmt.Errorf("valid from %s", crl.ThisUpdate.Format(time.RFC3339))
	case crl.NextUpdate.IsZero() || v.now.After(crl.NextUpdate):
		return fmt.Errorf("out of date since %s", crl.NextUpdate.Format(time.RFC3339))
	case weakHashes[crl.SignatureAlgorithm]:
		return fmt.Errorf("%w: signature %s", ErrWeak, crl.SignatureAlgorithm)
	}
	for _, e := range crl.Extensions {
		switch {
		case e.Id.Equal(oidAuthorityKey), e.Id.Equal(oidCRLNumber):
		case e.Id.Equal(oidDistributionPoint):
			if err := covers(e.Value, cert); err != nil {
				return err
			}
		case e.Critical:
			return fmt.Errorf("unknown critical extension %v (a delta list, for instance)", e.Id)
		}
	}
	for _, entry := range crl.RevokedCertificateEntries {
		for _, e := range entry.Extensions {
			if e.Critical { // the certificate issuer of an indirect list is the one that exists
				return fmt.Errorf("an entry has the unknown critical extension %v", e.Id)
			}
		}
	}
	return nil
}

// issuingDistributionPoint says which certificates a list is about.
type issuingDistributionPoint struct {
	DistributionPoint struct {
		FullName []asn1.RawValue `asn1:"optional,tag:0"`
	} `asn1:"optional,tag:0"`
	OnlyUser       bool           `asn1:"optional,tag:1"`
	OnlyCA         bool           `asn1:"optional,tag:2"`
	OnlyReasons    asn1.BitString `asn1:"optional,tag:3"`
	Indirect       bool           `asn1:"optional,tag:4"`
	OnlyAttributes bool           `asn1:"optional,tag:5"`
}

// uriTag is the tag of a URI among general names.
const uriTag = 6

// covers says whether a list that is about some certificates only is about this one.
func covers(extension []byte, cert *x509.Certificate) error {
	var p issuingDistributionPoint
	if rest, err := asn1.Unmarshal(extension, &p); err != nil || len(rest) > 0 {
		return errors.New("its distribution point cannot be read")
	}
	if p.Indirect || p.OnlyAttributes || p.OnlyReasons.BitLength > 0 || p.OnlyUser && cert.IsCA || p.OnlyCA && !cert.IsCA {
		return errors.New("it is about other certificates")
	}
	for _, n := range p.DistributionPoint.FullName {
		if n.Tag == uriTag && slices.Contains(cert.CRLDistributionPoints, string(n.Bytes)) {
			return nil
		}
	}
	if len(p.DistributionPoint.FullName) > 0 {
		return errors.New("it is of another distribution point than the certificate names")
	}
	return nil
}
