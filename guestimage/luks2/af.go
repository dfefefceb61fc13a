// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package luks2

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cloister-cc/cloister/keys"
)

// stripes is how many stripes the anti-forensic splitter makes of a key; the format knows no other number.
const stripes = 4000

// afSplit spreads key over dst, stripes times as long, so that every part of dst is needed to get it back: random
// stripes, and a last one that makes the diffused sum of all of them the key. See section 2.4 of the LUKS1 On-Disk
// Format Specification, version 1.2.3.
func afSplit(dst, key []byte, random io.Reader) error {
	size := len(key)
	if len(dst) != size*stripes {
		return fmt.Errorf("luks2: split of %d bytes into %d", size, len(dst))
	}
	last := dst[size*(stripes-1):]
	if _, err := io.ReadFull(random, dst[:size*(stripes-1)]); err != nil {
		return fmt.Errorf("luks2: make keyslot stripes: %w", err)
	}
	sum := make([]byte, size)
	defer keys.Wipe(sum)
	for i := range stripes - 1 {
		subtle.XORBytes(sum, sum, dst[i*size:(i+1)*size])
		diffuse(sum)
	}
	subtle.XORBytes(last, sum, key)
	return nil
}

// diffuse replaces each digest-sized block of b by the hash of its big-endian index and itself, cut to the block.
func diffuse(b []byte) {
	h := sha256.New()
	var index [4]byte
	for i := 0; i*sha256.Size < len(b); i++ {
		block := b[i*sha256.Size : min((i+1)*sha256.Size, len(b))]
		binary.BigEndian.PutUint32(index[:], uint32(i))
		h.Reset()
		h.Write(index[:])
		h.Write(block)
		copy(block, h.Sum(nil))
	}
}
