// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package image makes root file systems of containers out of image references: it pulls, verifies, decrypts and
// unpacks images inside the guest.
//
// A reference comes from the host and the image from a registry beyond the host; neither is trusted. A layer is seen by
// nobody before its HMAC (where it is encrypted), its blob digest and its diff_id have all matched. Only content is
// cached: for every Mount a tag is resolved at the registry again, and Config.Verify is asked about every reference
// and the digest that it stands for, whether its layers are here already or not. A reference by digest needs no
// registry once its layers are here. A cached layer that was encrypted is used only where its key is still to be had.
//
// A pull is one stream for each layer, from the registry to files: it goes on across dropped connections, and when its
// caller gives up. What an image may cost is bounded, see Limits; docs/images.md has all of it.
//
// The package knows keys only as a func, and neither agent nor rpc.
package image
