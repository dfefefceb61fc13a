// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package sealed makes and opens sealed secrets of Confidential Containers: text that stands for a secret where the host
// can read it, in the environment of a container's spec for instance.
//
// The text is "sealed." and a JSON Web Signature in compact form (RFC 7515), alg ES256. The header's kid is the URI of
// the public key, a P-256 JSON Web Key (RFC 7517); the payload names a resource (type "vault", provider "kbs"). Nothing
// of the secret is in the text, and the host can neither change it nor make another: it has no signing key.
package sealed
