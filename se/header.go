// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"

	"github.com/cloister-cc/cloister/keys"
)

// Sizes and fixed values of a header.
const (
	headerMagic   = "IBMSecEx"
	headerVersion = 0x100
	headerFixed   = 0x1a0 // up to the first key slot
	slotSize      = 80
	encryptedSize = 128
	tagSize       = 16
	ivSize        = 12
	customerSize  = 160
	// MaxHeaderSize is the largest size of a header in bytes: two pages.
	MaxHeaderSize = 2 * PageSize
	// MaxKeySlots is the number of key slots that fit.
	MaxKeySlots = (MaxHeaderSize - headerFixed - encryptedSize - tagSize) / slotSize
)

// Sizes of keys in bytes.
const (
	// HeaderKeySize is the size of the key that protects a header (the customer root key).
	HeaderKeySize = 32
	// ImageKeySize is the size of the key that encrypts the components.
	ImageKeySize = 64
	// CCKSize is the size of the customer communication key.
	CCKSize = 32
)

// Header is the header of an image. Its zero value is none.
type Header struct {
	// IV is the nonce of the encrypted part.
	IV [ivSize]byte
	// Digests cover the components.
	Digests Digests
	// PCF are the plaintext control flags.
	PCF Flags
	// CustomerKey is the ephemeral public key by which slots are wrapped: X and Y on P-521, each padded to 80 bytes.
	CustomerKey [customerSize]byte
	// Slots hold the header key, one for each host key.
	Slots []KeySlot
	// Encrypted is a Confidential, encrypted.
	Encrypted [encryptedSize]byte
	// Tag authenticates everything before it.
	Tag [tagSize]byte

	reserved uint32 // zero, but authenticated as it is
}

// KeySlot holds the header key for one host key.
type KeySlot struct {
	// HostKeyHash names the host key, see HostKeyHash.
	HostKeyHash [32]byte
	WrappedKey  [HeaderKeySize]byte
	Tag         [tagSize]byte
}

// HeaderSize returns the size in bytes of a header with that many key slots.
func HeaderSize(slots int) int { return headerFixed + slots*slotSize + encryptedSize + tagSize }

// Size returns the header's size in bytes.
func (h *Header) Size() int { return HeaderSize(len(h.Slots)) }

// headerLength checks the fixed part of a header and returns the size that it gives.
func headerLength(data []byte) (int, error) {
	if len(data) < headerFixed || !bytes.HasPrefix(data, []byte(headerMagic)) {
		return 0, formatError(PartHeader, 0, "the mark %q is not there", headerMagic)
	}
	if v := binary.BigEndian.Uint32(data[0x08:]); v != headerVersion {
		return 0, formatError(PartHeader, 0x08, "version 0x%x, only 0x%x is known", v, headerVersion)
	}
	size := binary.BigEndian.Uint32(data[0x0c:])
	slots, area := binary.BigEndian.Uint64(data[0x20:]), binary.BigEndian.Uint64(data[0x28:])
	switch {
	case slots == 0 || slots > MaxKeySlots:
		return 0, formatError(PartHeader, 0x20, "%d key slots are not between 1 and %d", slots, MaxKeySlots)
	case area != encryptedSize:
		return 0, formatError(PartHeader, 0x28, "encrypted area of %d bytes, only %d are known", area, encryptedSize)
	case uint64(size) != uint64(HeaderSize(int(slots))):
		return 0, formatError(PartHeader, 0x0c, "size %d is not that of %d key slots", size, slots)
	}
	return int(size), nil
}

// ParseHeader reads a header; data may go on after it.
func ParseHeader(data []byte) (*Header, error) {
	size, err := headerLength(data)
	if err != nil {
		return nil, err
	}
	if len(data) < size {
		return nil, formatError(PartHeader, int64(len(data)), "cut off, it has %d bytes", size)
	}
	h := &Header{
		IV:       [ivSize]byte(data[0x10:]),
		reserved: binary.BigEndian.Uint32(data[0x1c:]),
		Digests: Digests{
			Pages: binary.BigEndian.Uint64(data[0x30:]),
			PLD:   Digest(data[0xe0:]), ALD: Digest(data[0x120:]), TLD: Digest(data[0x160:]),
		},
		PCF:         Flags(binary.BigEndian.Uint64(data[0x38:])),
		CustomerKey: [customerSize]byte(data[0x40:]),
		Slots:       make([]KeySlot, binary.BigEndian.Uint64(data[0x20:])),
	}
	rest := data[headerFixed:size]
	for i := range h.Slots {
		h.Slots[i] = KeySlot{HostKeyHash: [32]byte(rest), WrappedKey: [HeaderKeySize]byte(rest[32:]), Tag: [tagSize]byte(rest[64:])}
		rest = rest[slotSize:]
	}
	h.Encrypted, h.Tag = [encryptedSize]byte(rest), [tagSize]byte(rest[encryptedSize:])
	return h, nil
}

// Encode returns the header's bytes.
func (h *Header) Encode() []byte {
	data := h.AAD()
	data = append(data, h.Encrypted[:]...)
	return append(data, h.Tag[:]...)
}

// AAD returns what the tag covers in the clear: everything from the mark to the end of the key slots.
func (h *Header) AAD() []byte {
	data := make([]byte, headerFixed, h.Size())
	copy(data, headerMagic)
	binary.BigEndian.PutUint32(data[0x08:], headerVersion)
	binary.BigEndian.PutUint32(data[0x0c:], uint32(h.Size()))
	copy(data[0x10:], h.IV[:])
	binary.BigEndian.PutUint32(data[0x1c:], h.reserved)
	binary.BigEndian.PutUint64(data[0x20:], uint64(len(h.Slots)))
	binary.BigEndian.PutUint64(data[0x28:], encryptedSize)
	binary.BigEndian.PutUint64(data[0x30:], h.Digests.Pages)
	binary.BigEndian.PutUint64(data[0x38:], uint64(h.PCF))
	copy(data[0x40:], h.CustomerKey[:])
	copy(data[0xe0:], h.Digests.PLD[:])
	copy(data[0x120:], h.Digests.ALD[:])
	copy(data[0x160:], h.Digests.TLD[:])
	for _, s := range h.Slots {
		data = append(data, s.HostKeyHash[:]...)
		data = append(data, s.WrappedKey[:]...)
		data = append(data, s.Tag[:]...)
	}
	return data
}

// Confidential is the part of a header that the header key opens.
type Confidential struct {
	// CCK is the customer communication key, CCKSize bytes: it decrypts dumps and derives extension secrets.
	CCK *keys.Secret
	// ImageKey is the XTS key of the components, ImageKeySize bytes.
	ImageKey *keys.Secret
	// PSWMask and PSWAddress are the state in which the guest starts.
	PSWMask, PSWAddress uint64
	// SCF are the secret control flags.
	SCF Flags
	// OptionalItems is the number of optional items, 0 in all images of this version.
	OptionalItems uint32
	reserved      uint32
}

// Wipe overwrites the keys.
func (c *Confidential) Wipe() {
	c.CCK.Wipe()
	c.ImageKey.Wipe()
}

// Open decrypts the confidential part; the caller wipes it. A header or key that is not right is ErrHeaderAuthentication.
func (h *Header) Open(headerKey *keys.Secret) (*Confidential, error) {
	gcm, err := newGCM(headerKey.Bytes())
	if err != nil {
		return nil, err
	}
	sealed := append(append(make([]byte, 0, encryptedSize+tagSize), h.Encrypted[:]...), h.Tag[:]...)
	plain, err := gcm.Open(sealed[:0], h.IV[:], sealed, h.AAD())
	if err != nil {
		return nil, ErrHeaderAuthentication
	}
	defer keys.Wipe(sealed)
	return &Confidential{
		CCK:           keys.NewSecret(bytes.Clone(plain[:0x20])),
		ImageKey:      keys.NewSecret(bytes.Clone(plain[0x20:0x60])),
		PSWMask:       binary.BigEndian.Uint64(plain[0x60:]),
		PSWAddress:    binary.BigEndian.Uint64(plain[0x68:]),
		SCF:           Flags(binary.BigEndian.Uint64(plain[0x70:])),
		OptionalItems: binary.BigEndian.Uint32(plain[0x78:]),
		reserved:      binary.BigEndian.Uint32(plain[0x7c:]),
	}, nil
}

// seal encrypts c into the header, whose other fields must be final.
func (h *Header) seal(headerKey *keys.Secret, c *Confidential) error {
	gcm, err := newGCM(headerKey.Bytes())
	if err != nil {
		return err
	}
	if len(c.CCK.Bytes()) != CCKSize || len(c.ImageKey.Bytes()) != ImageKeySize {
		return fmt.Errorf("seal header: a CCK of %d and an image key of %d bytes, want %d and %d",
			len(c.CCK.Bytes()), len(c.ImageKey.Bytes()), CCKSize, ImageKeySize)
	}
	plain := make([]byte, encryptedSize, encryptedSize+tagSize)
	copy(plain, c.CCK.Bytes())
	copy(plain[0x20:], c.ImageKey.Bytes())
	binary.BigEndian.PutUint64(plain[0x60:], c.PSWMask)
	binary.BigEndian.PutUint64(plain[0x68:], c.PSWAddress)
	binary.BigEndian.PutUint64(plain[0x70:], uint64(c.SCF))
	binary.BigEndian.PutUint32(plain[0x78:], c.OptionalItems)
	binary.BigEndian.PutUint32(plain[0x7c:], c.reserved)
	out := gcm.Seal(plain[:0], h.IV[:], plain, h.AAD()) // in place: nothing is left to wipe
	h.Encrypted, h.Tag = [encryptedSize]byte(out), [tagSize]byte(out[encryptedSize:])
	return nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	if len(key) != HeaderKeySize {
		return nil, fmt.Errorf("key of %d bytes instead of %d", len(key), HeaderKeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
