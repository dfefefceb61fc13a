// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package decrypt decrypts image layers that were encrypted with ocicrypt for Confidential Containers guests.
//
// A layer descriptor carries two annotations. KeysAnnotation is a comma list of base64 packets, one for each
// recipient: the layer's own key, wrapped with a key that the packet names by its URI (kbs:///repository/type/tag).
// PublicAnnotation names the layer cipher, AES-256-CTR with HMAC-SHA256 over the ciphertext. The packet's format is
// that of Confidential Containers' attestation agent, versions 1 and 2; the rest is that of ocicrypt's spec.
//
// Annotations and layers come from the registry and are not trusted. The HMAC is known to be right only at the end of
// the layer: until the reader has returned io.EOF, the plaintext must not be used.
package decrypt
