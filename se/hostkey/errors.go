// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package hostkey

import (
	"errors"
	"fmt"
)

// Reasons why a document does not verify; use errors.Is.
var (
	// ErrNoSigningKey means that no certificate is that of IBM's host key signing key.
	ErrNoSigningKey = errors.New("no certificate of IBM's host key signing key")
	// ErrManySigningKeys means that more than one certificate is.
	ErrManySigningKeys = errors.New("more than one certificate of IBM's host key signing key")
	// ErrChain means that the signing key's certificate does not lead to a trusted root.
	ErrChain = errors.New("the certificate of the signing key does not lead to a trusted root")
	// ErrSignature means that the signing key has not signed the document.
	ErrSignature = errors.New("not signed by the given signing key")
	// ErrAuthority means that the document names another authority key than the signing key.
	ErrAuthority = errors.New("issued by another key than the given signing key")
	// ErrExpired and ErrNotYetValid are about a document's validity.
	ErrExpired     = errors.New("expired")
	ErrNotYetValid = errors.New("not valid yet")
	// ErrNoCRL means that a link of the chain has no valid revocation list.
	ErrNoCRL = errors.New("no valid revocation list")
	// ErrRevoked means that a certificate was revoked.
	ErrRevoked = errors.New("revoked")
	// ErrWeak means that a key or signature has less than 112 bits of security.
	ErrWeak = errors.New("less than 112 bits of security")
	// ErrUsage means that a certificate is not for what it would be used for.
	ErrUsage = errors.New("not a certificate for this use")
)

// hints say what to do about each reason.
var hints = map[error]string{
	ErrNoSigningKey:    "give IBM's signing key certificate (ibm-z-host-key-signing-gen2.crt, for instance) by --cert",
	ErrManySigningKeys: "give the one that has signed the host key document",
	ErrChain:           "give the intermediate certificates by --cert and, if it is not one of the system's, the root by --root-ca",
	ErrSignature:       "get the document again from IBM Resource Link, and the signing key certificate of its generation",
	ErrAuthority:       "give the signing key certificate of the document's generation",
	ErrExpired:         "get a current one from IBM Resource Link",
	ErrNotYetValid:     "check the clock of this machine",
	ErrNoCRL:           "give by --crl a current revocation list of every issuer: root, intermediate and IBM's signing key; nothing is fetched",
	ErrRevoked:         "do not use it: the machine or key can no longer be trusted",
}

// VerifyError says which certificate does not verify, and why.
type VerifyError struct {
	// Subject names the certificate.
	Subject string
	// Err is one of the reasons of this package, maybe with more about it.
	Err error
}

// Error implements error.
func (e *VerifyError) Error() string { return e.Subject + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *VerifyError) Unwrap() error { return e.Err }

// Hint says what to do about it; "" where nothing can be said.
func (e *VerifyError) Hint() string {
	for reason, hint := range hints {
		if errors.Is(e.Err, reason) {
			return hint
		}
	}
	return ""
}

func verifyError(subject string, reason error, format string, a ...any) error {
	err := reason
	if format != "" {
		err = fmt.Errorf("%w: "+format, append([]any{reason}, a...)...)
	}
	return &VerifyError{Subject: subject, Err: err}
}
