// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package xts is AES-256-XTS (IEEE 1619-2018, NIST SP 800-38E) with a tweak of 16 bytes that the caller chooses. IBM
// Secure Execution needs that: its tweaks are 128-bit numbers in big-endian order, while other packages number data units
// with 64 bits in little-endian order.
package xts

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes in bytes.
const (
	// KeySize is the size of a key: one AES-256 key for the data, then one for the tweak.
	KeySize = 64
	// TweakSize is the size of a tweak.
	TweakSize = 16
)

// Tweak is the number of a data unit as it enters the cipher.
type Tweak [TweakSize]byte

// Cipher encrypts and decrypts data units. It may be used from many goroutines.
type Cipher struct {
	data, tweak cipher.Block
}

// ErrKey means that a key has not KeySize bytes, or that both halves are the same, which is no longer XTS.
var ErrKey = errors.New("not an AES-256-XTS key: 64 bytes whose halves differ")

// New returns the cipher of a key. The key can be wiped afterwards; what the cipher keeps of it cannot.
func New(key []byte) (*Cipher, error) {
	if len(key) != KeySize || subtle.ConstantTimeCompare(key[:KeySize/2], key[KeySize/2:]) == 1 {
		return nil, ErrKey
	}
	data, err := aes.NewCipher(key[:KeySize/2])
	if err != nil {
		return nil, fmt.Errorf("xts: %w", err)
	}
	tweak, err := aes.NewCipher(key[KeySize/2:])
	if err != nil {
		return nil, fmt.Errorf("xts: %w", err)
	}
	return &Cipher{data: data, tweak: tweak}, nil
}

// Encrypt encrypts one data unit, whole blocks of 16 bytes, into dst, which has the size of src and is src or apart from it.
func (c *Cipher) Encrypt(dst, src []byte, tweak Tweak) error {
	return c.crypt(dst, src, tweak, c.data.Encrypt)
}

// Decrypt is the inverse of Encrypt.
func (c *Cipher) Decrypt(dst, src []byte, tweak Tweak) error {
	return c.crypt(dst, src, tweak, c.data.Decrypt)
}

// chunk is how much is done in one go: the tweaks of that many bytes are made first, then added to all blocks. Block by
// block, the processor would wait for each before it begins the next: three times slower.
const chunk = 4096

func (c *Cipher) crypt(dst, src []byte, tweak Tweak, block func(dst, src []byte)) error {
	if len(src)%aes.BlockSize != 0 || len(dst) != len(src) {
		return fmt.Errorf("xts: data unit of %d bytes into %d: not whole blocks of the same number", len(src), len(dst))
	}
	c.tweak.Encrypt(tweak[:], tweak[:])
	lo, hi := binary.LittleEndian.Uint64(tweak[:8]), binary.LittleEndian.Uint64(tweak[8:])
	var tweaks [chunk]byte
	for len(src) > 0 {
		n := min(len(src), chunk)
		for t := tweaks[:n]; len(t) >= aes.BlockSize; t = t[aes.BlockSize:] {
			binary.LittleEndian.PutUint64(t[:8], lo)
			binary.LittleEndian.PutUint64(t[8:], hi)
			// Times the primitive element, modulo x^128 + x^7 + x^2 + x + 1, without a branch on the key's bits.
			carry := -(hi >> 63) & 0x87
			hi = hi<<1 | lo>>63
			lo = lo<<1 ^ carry
		}
		out := dst[:n]
		subtle.XORBytes(out, src[:n], tweaks[:n])
		for b := out; len(b) >= aes.BlockSize; b = b[aes.BlockSize:] {
			block(b[:aes.BlockSize], b[:aes.BlockSize])
		}
		subtle.XORBytes(out, out, tweaks[:n])
		src, dst = src[n:], dst[n:]
	}
	return nil
}
