// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import "strings"

// encryptedSuffix marks the media type of an encrypted layer, see ocicrypt's spec package.
const encryptedSuffix = "+encrypted"

// PlainMediaType returns the media type that a layer has once it is decrypted, and whether it is encrypted at all.
func PlainMediaType(mediaType string) (plain string, encrypted bool) {
	return strings.CutSuffix(mediaType, encryptedSuffix)
}
