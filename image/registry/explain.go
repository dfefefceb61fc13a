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
	"syscall"

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

// Explain turns an error of the HTTP client into one that says what is wrong and where to look.
func Explain(ref Reference, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("registry: %s: %w", ref, err)
	}
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		status    remoteserrors.ErrUnexpectedStatus
		dns       *net.DNSError
	)
	switch {
	case errors.As(err, &authority):
		return fmt.Errorf("registry: %s: %w: it is not signed by the CA in the sealed initramfs (%w)", ref, ErrUntrusted, authority)
	case errors.As(err, &hostname):
		return fmt.Errorf("registry: %s: %w: it is for another host (%w)", ref, ErrUntrusted, hostname)
	case errors.As(err, &invalid):
		return fmt.Errorf("registry: %s: %w: check it and the guest's clock (%w)", ref, ErrUntrusted, invalid)
	case errors.Is(err, docker.ErrInvalidAuthorization), errors.As(err, &status) && unauthorized(status.StatusCode):
		return fmt.Errorf("registry: %s: %w: check the auth.json entry of %s in the sealed initramfs", ref, ErrUnauthorized, ref.Host)
	case errdefs.IsNotFound(err):
		return fmt.Errorf("registry: %s: %w", ref, ErrNotFound)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("registry: %s: no registry listens at %s: %w", ref, ref.Host, err)
	case errors.As(err, &dns):
		return fmt.Errorf("registry: %s: cannot resolve the name of registry %s: %w", ref, ref.Host, err)
	default:
		return fmt.Errorf("registry: %s: %w", ref, err)
	}
}

func unauthorized(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}
