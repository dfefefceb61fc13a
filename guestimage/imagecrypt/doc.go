// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package imagecrypt makes container images on the build host: it makes one out of a root file system, encrypts layers,
// decrypts them, shows for whom they are encrypted, and pushes to a registry. Images are in registries, OCI layouts, tars
// of those, and the tars of "docker save"; all of these are hostile input with limits.
//
// Layers are encrypted as ocicrypt does it, AES-256-CTR with HMAC-SHA256, each with a key of its own. That key is
// wrapped for every recipient: in the packet that Confidential Containers' tools write (version 1, A256GCM), so that any
// Confidential Containers guest that has the recipient's key can run the image, or by JWE, PKCS #7 or OpenPGP as ocicrypt
// does it. Config and manifest stay readable.
//
// It is never linked into the agent.
package imagecrypt
