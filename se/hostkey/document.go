// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package hostkey

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/cloister-cc/cloister/se"
)

// Limits of what is read.
const (
	// MaxFileSize bounds a file of certificates or of revocation lists, in bytes.
	MaxFileSize = 16 << 20
	// maxBlocks bounds the PEM blocks of a file.
	maxBlocks = 64
)

// Types of PEM blocks.
const (
	pemCertificate = "CERTIFICATE"
	pemCRL         = "X509 CRL"
)

// ErrNotDocument means that data is no host key document.
var ErrNotDocument = errors.New("no host key document")

// Document is a host key document. Reading one verifies nothing, see Verifier.
type Document struct {
	Certificate *x509.Certificate
	// PublicKey is the host key.
	PublicKey *ecdh.PublicKey
	// Ignored is the number of further certificates in the file, which are not used.
	Ignored int
}

// Parse reads a host key document in PEM or DER form: the first certificate of a file, with a key on P-521.
func Parse(data []byte) (*Document, error) {
	certs, _, err := parseFile(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotDocument, err)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w: no certificate in it", ErrNotDocument)
	}
	key, ok := certs[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P521() {
		return nil, fmt.Errorf("%w: its key is not one of the curve P-521", ErrNotDocument)
	}
	pub, err := key.ECDH()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotDocument, err)
	}
	return &Document{Certificate: certs[0], PublicKey: pub, Ignored: len(certs) - 1}, nil
}

// Hash returns the hash by which images name the host key.
func (d *Document) Hash() ([32]byte, error) { return se.HostKeyHash(d.PublicKey) }

// parseFile reads the certificates and revocation lists of a file: PEM blocks of both kinds, or one of either in DER.
func parseFile(data []byte) ([]*x509.Certificate, []*x509.RevocationList, error) {
	if len(data) > MaxFileSize {
		return nil, nil, fmt.Errorf("more than %d bytes", MaxFileSize)
	}
	if !bytes.Contains(data, []byte("-----BEGIN ")) {
		return parseDER(data)
	}
	var certs []*x509.Certificate
	var crls []*x509.RevocationList
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return certs, crls, nil
		}
		if len(certs)+len(crls) == maxBlocks {
			return nil, nil, fmt.Errorf("more than %d PEM blocks", maxBlocks)
		}
		switch block.Type {
		case pemCertificate:
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("parse certificate: %w", err)
			}
			certs = append(certs, cert)
		case pemCRL:
			crl, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("parse revocation list: %w", err)
			}
			crls = append(crls, crl)
		default:
			return nil, nil, fmt.Errorf("PEM block %q is neither a certificate nor a revocation list", block.Type)
		}
	}
}

func parseDER(data []byte) ([]*x509.Certificate, []*x509.RevocationList, error) {
	cert, err := x509.ParseCertificate(data)
	if err == nil {
		return []*x509.Certificate{cert}, nil, nil
	}
	if crl, crlErr := x509.ParseRevocationList(data); crlErr == nil {
		return nil, []*x509.RevocationList{crl}, nil
	}
	return nil, nil, fmt.Errorf("neither PEM nor DER: %w", err)
}
