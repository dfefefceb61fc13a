// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"bytes"
	"crypto/ecdh"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/cloister-cc/cloister/keys"
)

// ErrKeySlot means that a key slot does not open with the host key whose hash it bears.
var ErrKeySlot = errors.New("the key slot does not open with its host key")

// ErrCustomerKey means that the customer key of a header is no point of P-521.
var ErrCustomerKey = errors.New("the customer key is no point of the curve P-521")

// Sizes of coordinates on P-521 in bytes: as they are, and padded.
const (
	coordinate = 66
	padded     = 80
)

// encodePoint returns X and Y of a public key, each padded with zeros on the left.
func encodePoint(pub *ecdh.PublicKey) ([customerSize]byte, error) {
	var out [customerSize]byte
	raw := pub.Bytes() // 4, X, Y
	if pub.Curve() != ecdh.P521() || len(raw) != 1+2*coordinate {
		return out, errors.New("not a public key of the curve P-521")
	}
	copy(out[padded-coordinate:], raw[1:1+coordinate])
	copy(out[2*padded-coordinate:], raw[1+coordinate:])
	return out, nil
}

func decodePoint(point [customerSize]byte) (*ecdh.PublicKey, error) {
	x, y := point[:padded], point[padded:]
	zero := make([]byte, padded-coordinate)
	if !bytes.HasPrefix(x, zero) || !bytes.HasPrefix(y, zero) {
		return nil, ErrCustomerKey
	}
	raw := append(append([]byte{4}, x[len(zero):]...), y[len(zero):]...)
	pub, err := ecdh.P521().NewPublicKey(raw)
	if err != nil {
		return nil, ErrCustomerKey
	}
	return pub, nil
}

// HostKeyHash returns the hash by which a key slot names a host key: SHA-256 over X and Y, each padded to 80 bytes.
func HostKeyHash(pub *ecdh.PublicKey) ([sha256.Size]byte, error) {
	point, err := encodePoint(pub)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(point[:]), nil
}

// exchangeKey derives the key that wraps the header key: one block of the ANSI X9.63 KDF with SHA-256 over the shared
// secret, without shared information.
func exchangeKey(private *ecdh.PrivateKey, public *ecdh.PublicKey) (*keys.Secret, error) {
	z, err := private.ECDH(public)
	if err != nil {
		return nil, err
	}
	defer keys.Wipe(z)
	input := append(append(make([]byte, 0, len(z)+4), z...), 0, 0, 0, 1)
	defer keys.Wipe(input)
	sum := sha256.Sum256(input)
	defer keys.Wipe(sum[:])
	return keys.NewSecret(bytes.Clone(sum[:])), nil
}

// slotIV is the nonce of a key slot. It may be constant because each wrapping key is used once.
var slotIV [ivSize]byte

// wrap makes the key slot of one host key.
func wrap(headerKey *keys.Secret, customer *ecdh.PrivateKey, host *ecdh.PublicKey) (KeySlot, error) {
	hash, err := HostKeyHash(host)
	if err != nil {
		return KeySlot{}, err
	}
	kek, err := exchangeKey(customer, host)
	if err != nil {
		return KeySlot{}, fmt.Errorf("wrap header key: %w", err)
	}
	defer kek.Wipe()
	gcm, err := newGCM(kek.Bytes())
	if err != nil {
		return KeySlot{}, err
	}
	out := gcm.Seal(nil, slotIV[:], headerKey.Bytes(), nil) //nolint:gosec // G407: the format says so, see slotIV
	return KeySlot{HostKeyHash: hash, WrappedKey: [HeaderKeySize]byte(out), Tag: [tagSize]byte(out[HeaderKeySize:])}, nil
}

// Unwrap returns the header key with the private host key of the slot; the caller wipes it. customerKey is that of the
// header. Errors are ErrCustomerKey and ErrKeySlot.
func (s KeySlot) Unwrap(host *ecdh.PrivateKey, customerKey [customerSize]byte) (*keys.Secret, error) {
	customer, err := decodePoint(customerKey)
	if err != nil {
		return nil, err
	}
	kek, err := exchangeKey(host, customer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeySlot, err)
	}
	defer kek.Wipe()
	gcm, err := newGCM(kek.Bytes())
	if err != nil {
		return nil, err
	}
	wrapped := append(append(make([]byte, 0, HeaderKeySize+tagSize), s.WrappedKey[:]...), s.Tag[:]...)
	key, err := gcm.Open(nil, slotIV[:], wrapped, nil)
	if err != nil {
		return nil, ErrKeySlot
	}
	return keys.NewSecret(key), nil
}
