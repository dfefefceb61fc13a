// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package keys turns a key URI into secret bytes. Providers (keys/file now; key broker, sealed secrets and the
// ultravisor later) live in folders of their own. It imports neither agent, rpc, storage, image nor attest.
//
// URIs are those of Confidential Containers key broker resources: kbs:///<repository>/<type>/<tag>.
package keys

import (
	"context"
	"errors"
)

// ErrNotFound means that a provider has no key of that URI. Every other error of a Provider means that it could not
// tell, and must not be taken for "no such key".
var ErrNotFound = errors.New("no such key")

// Provider looks up secrets.
type Provider interface {
	// Get returns the secret of a URI; the caller owns and wipes it. A key that the provider does not have is
	// ErrNotFound. Errors name the URI, never the secret.
	Get(ctx context.Context, uri string) (*Secret, error)
}
