// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"crypto/sha512"
	"encoding/binary"
	"hash"
)

// Digest is a SHA-512 hash.
type Digest [sha512.Size]byte

// Digests are what a header says of the components' pages, in the order of their addresses.
type Digests struct {
	// PLD is the page list digest: over the pages as they are in the image.
	PLD Digest
	// ALD is the address list digest: over the pages' addresses.
	ALD Digest
	// TLD is the tweak list digest: over the pages' tweaks.
	TLD Digest
	// Pages is the number of pages.
	Pages uint64
}

// Digester computes Digests. The pages have to come in the order of their addresses.
type Digester struct {
	pld, ald, tld hash.Hash
	pages         uint64
}

// NewDigester returns a Digester that has seen no page.
func NewDigester() *Digester {
	return &Digester{pld: sha512.New(), ald: sha512.New(), tld: sha512.New()}
}

// Add takes whole pages of a component as they are in the image; offset is where in the component they begin.
func (d *Digester) Add(c Component, pages []byte, offset uint64) {
	_, _ = d.pld.Write(pages) // a hash's Write never fails
	for at := uint64(0); at < uint64(len(pages)); at += PageSize {
		var address [8]byte
		binary.BigEndian.PutUint64(address[:], c.Address+offset+at)
		_, _ = d.ald.Write(address[:])
		tweak := c.Tweak(offset + at)
		_, _ = d.tld.Write(tweak[:])
		d.pages++
	}
}

// Sum returns the digests of what has been added.
func (d *Digester) Sum() Digests {
	return Digests{PLD: Digest(d.pld.Sum(nil)), ALD: Digest(d.ald.Sum(nil)), TLD: Digest(d.tld.Sum(nil)), Pages: d.pages}
}
