// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"encoding/binary"
	"fmt"

	"github.com/cloister-cc/cloister/se/xts"
)

// PageSize is the size of a page: the data unit of encryption and digests, and the alignment of everything.
const PageSize = 4096

// Kind is the kind of a component. Images say it by an id in the tweak prefix, which is a habit of the tools that make
// them, and nothing that the ultravisor checks.
type Kind int

// The kinds of components.
const (
	KindUnknown Kind = iota
	KindKernel
	KindRamdisk
	KindCommandLine
	KindStage3b
)

// String returns the name that tools print.
func (k Kind) String() string {
	switch k {
	case KindKernel:
		return "kernel"
	case KindRamdisk:
		return "ramdisk"
	case KindCommandLine:
		return "cmdline"
	case KindStage3b:
		return "stage3b"
	default:
		return "unknown"
	}
}

// MarshalText returns the name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// id returns the id of pvimg.
func (k Kind) id() uint64 {
	return map[Kind]uint64{KindKernel: 40, KindRamdisk: 50, KindCommandLine: 60, KindStage3b: 70}[k]
}

// kindOf reads both tools' ids.
func kindOf(id uint64) Kind {
	switch id {
	case 40, 0:
		return KindKernel
	case 50, 2:
		return KindRamdisk
	case 60, 1:
		return KindCommandLine
	case 70, 3:
		return KindStage3b
	default:
		return KindUnknown
	}
}

// Component is one part of an image, as the IPIB lists it.
type Component struct {
	// TweakPrefix is the upper half of the tweaks of its pages.
	TweakPrefix uint64
	// Address is where it lies, in the image as in the guest's memory; it is the start of a page.
	Address uint64
	// Size is its size in bytes, whole pages.
	Size uint64
}

// Kind returns what the id in the tweak prefix says.
func (c Component) Kind() Kind { return kindOf(c.TweakPrefix >> 48) }

// Pages returns the number of its pages.
func (c Component) Pages() uint64 { return c.Size / PageSize }

// Tweak returns the tweak of the page at an offset in the component: the prefix, then the offset.
func (c Component) Tweak(offset uint64) xts.Tweak {
	var t xts.Tweak
	binary.BigEndian.PutUint64(t[:8], c.TweakPrefix)
	binary.BigEndian.PutUint64(t[8:], offset)
	return t
}

// Encrypt encrypts pages of the component in place; offset is where in the component they begin.
func (c Component) Encrypt(cipher *xts.Cipher, pages []byte, offset uint64) error {
	return c.each(pages, offset, cipher.Encrypt)
}

// Decrypt is the inverse of Encrypt.
func (c Component) Decrypt(cipher *xts.Cipher, pages []byte, offset uint64) error {
	return c.each(pages, offset, cipher.Decrypt)
}

func (c Component) each(pages []byte, offset uint64, crypt func(dst, src []byte, t xts.Tweak) error) error {
	if len(pages)%PageSize != 0 || offset%PageSize != 0 {
		return fmt.Errorf("%d bytes at offset %d of a component are not whole pages", len(pages), offset)
	}
	for at := 0; at < len(pages); at += PageSize {
		page := pages[at : at+PageSize]
		if err := crypt(page, page, c.Tweak(offset+uint64(at))); err != nil {
			return err
		}
	}
	return nil
}

// roundUp returns the start of the first page that is not below n.
func roundUp(n uint64) uint64 { return (n + PageSize - 1) &^ (PageSize - 1) }
