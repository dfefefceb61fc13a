// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// Errors that callers tell apart.
var (
	// ErrNotFound means that the registry does not have the image or blob.
	ErrNotFound = errors.New("not found in the registry")
	// ErrUnauthorized means that the registry wants other credentials than it got.
	ErrUnauthorized = errors.New("registry refuses the credentials that were given, or wants some")
	// ErrUntrusted means that the registry's certificate is not one that the guest trusts.
	ErrUntrusted = errors.New("registry certificate is not trusted")
)

// maxShown bounds the text of an error, of which a registry determines a part, in bytes.
const maxShown = 1 << 10

// shownError is an error whose text may be shown: it has no control characters, and not more than maxShown bytes.
type shownError struct {
	error
	text string
}

func (e *shownError) Error() string { return e.text }

func (e *shownError) Unwrap() error { return e.error }

// shown makes sure that what a registry has put into an error forges no lines of a log, and does not fill it.
func shown(err error) error {
	text := strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ';'
		case r == unicode.ReplacementChar || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, err.Error())
	if len(text) > maxShown {
		text = strings.ToValidUTF8(text[:maxShown], "") + "..."
	}
	if text == err.Error() {
		return err
	}
	return &shownError{err, text}
}

// Explain turns an error of the HTTP client into one that says what is wrong and where to look.
func Explain(ref Reference, err error) error {
	var status remoteserrors.ErrUnexpectedStatus
	switch ended := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded); {
	case ended: // as it is
	case errors.Is(err, docker.ErrInvalidAuthorization), errors.As(err, &status) && unauthorized(status.StatusCode):
		return fmt.Errorf("registry: %s: %w: check the credentials that the guest has for %s", ref, ErrUnauthorized, ref.Host)
	case errdefs.IsNotFound(err):
		err = ErrNotFound
	}
	return explain(ref.String(), ref.Host, err)
}

// explain says what is wrong with the way to a host.
func explain(what, host string, err error) error {
	err = shown(err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("registry: %s: %w", what, err)
	}
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		dns       *net.DNSError
	)
	switch {
	case errors.As(err, &authority):
		return fmt.Errorf("registry: %s: %w: no CA that the guest trusts has signed it (%w)", what, ErrUntrusted, authority)
	case errors.As(err, &hostname):
		return fmt.Errorf("registry: %s: %w: it is for another host (%w)", what, ErrUntrusted, hostname)
	case errors.As(err, &invalid):
		return fmt.Errorf("registry: %s: %w: check it and the guest's clock (%w)", what, ErrUntrusted, invalid)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("registry: %s: no registry listens at %s: %w", what, host, err)
	case errors.As(err, &dns):
		return fmt.Errorf("registry: %s: cannot resolve the name of registry %s: %w", what, host, err)
	default:
		return fmt.Errorf("registry: %s: %w", what, err)
	}
}

func unauthorized(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}
