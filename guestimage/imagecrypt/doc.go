// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package imagecrypt makes container images on the build host: an OCI image layout out of a root file system, the same
// with its layers encrypted for guests, and pushed to a registry.
//
// Layers are encrypted as ocicrypt does it, AES-256-CTR with HMAC-SHA256, each with a key of its own. That key is
// wrapped for every recipient in the packet that Confidential Containers' tools write (version 1, A256GCM), so that any
// Confidential Containers guest that has the recipient's key can run the image. Config and manifest stay readable.
//
// It is never linked into the agent.
package imagecrypt
