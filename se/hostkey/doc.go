// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package hostkey reads and verifies host key documents of IBM Z.
//
// A host key document is an X.509 certificate of a machine's public host key (P-521), signed by IBM's host key signing
// key, which a certificate authority has certified. An image that is sealed for a document that nobody verified can be
// read by whoever made the document up.
//
// Nothing is fetched: certificates and revocation lists are what the caller gives, and a link of the chain for which no
// valid revocation list was given does not verify.
package hostkey
