// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package testbed

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"strings"
)

// cacheKey names a build by everything that it is made of.
type cacheKey struct{ h hash.Hash }

// newCacheKey starts a key with the recipe's name and number; change the number when the recipe changes.
func newCacheKey(recipe string) *cacheKey {
	k := &cacheKey{h: sha256.New()}
	k.add(recipe)
	return k
}

func (k *cacheKey) add(part string) {
	_, _ = io.WriteString(k.h, part+"\x00") // a hash never fails
}

// String returns twelve hexadecimal digits.
func (k *cacheKey) String() string { return hex.EncodeToString(k.h.Sum(nil))[:12] }

// clean makes a Debian version fit for a folder's name.
func clean(version string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '_'
	}, version)
}
