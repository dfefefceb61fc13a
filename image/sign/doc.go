// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package sign decides by a containers policy.json whether an image may be used.
//
// The policy is trusted: it comes from the sealed configuration. Signatures, and the manifest that holds them, come from
// a registry or a web server that the host reaches too; they are bounded before anything reads them, and one that cannot
// be read is one that nobody signed. Nothing else comes from outside: the package opens no connections, and reads
// neither files nor the environment. What is fetched comes through Source, what a policy calls a path is a name in
// Config.Keys. The guest's clock is the host's, so that a key's expiry keeps nobody out who sets the clock.
//
// Policies mean what containers-policy.json(5) says, because go.podman.io/image/v5/signature evaluates them. It is told
// of keys by value, never by path. Signatures in sigstore's format it takes only from a transport of its own; they pass
// through a private folder that is removed before Check returns. What it is not trusted to do is checked here: the size
// of everything, duplicate keys in JSON, compressed signatures.
//
// Programs are built with the tag containers_image_openpgp. Without it the library needs C; the package then accepts
// only policies that need no signature, and refuses every other one when it is loaded.
package sign
