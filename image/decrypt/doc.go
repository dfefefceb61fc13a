// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package decrypt decrypts image layers that were encrypted with ocicrypt, for Confidential Containers guests or for
// whoever has a private key.
//
// A layer descriptor carries an annotation for each protocol that its key was wrapped with (KeysPrefix), and one with
// the public parameters of the layer cipher (PublicAnnotation): AES-256-CTR with HMAC-SHA256 over the ciphertext.
//
//   - provider.NAME, usually KeysAnnotation: a comma list of base64 packets, one for each recipient. A packet names the
//     key that unwraps by its URI (kbs:///repository/type/tag). The format is that of Confidential Containers'
//     attestation agent, versions 1 and 2, with the wrap types A256GCM and A256CTR and the key provider kbs.
//   - jwe (RFC 7516), pkcs7 (RFC 2315) and pgp (RFC 4880): messages for public keys, which name no URI. The guest's
//     configuration lists its private keys, see Keys. They have no passphrases.
//   - pkcs11 and others: an error that names them, unless another recipient's key opens.
//
// Annotations and layers come from the registry and are not trusted. The HMAC is known to be right only at the end of
// the layer: until the reader has returned io.EOF, the plaintext must not be used. Nor does it say who made the layer:
// with public keys anybody can encrypt, and only a signature or a pinned digest says whose image it is.
//
// Keys that a KeyFunc gave and layer keys are overwritten after use, and of parsed private keys what can be reached. No
// error quotes a key.
package decrypt
