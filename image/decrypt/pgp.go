// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/ecdh"
	"github.com/ProtonMail/go-crypto/openpgp/elgamal"
	pgp "github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ProtonMail/go-crypto/openpgp/x25519"
	"github.com/ProtonMail/go-crypto/openpgp/x448"
)

// pgpMessage is an encrypted message of OpenPGP (RFC 4880, section 11.3).
type pgpMessage []byte

// parsePGP checks what a message begins with: keys for at most maxPackets recipients, then data that is encrypted and
// protected. The library would return a message that is not encrypted at all as if it had been opened.
func parsePGP(data []byte) (message, error) {
	packets := pgp.NewReader(bytes.NewReader(data))
	for recipients := 0; ; {
		p, err := packets.Next()
		if err != nil {
			return nil, fmt.Errorf("parse PGP message: %.200q", err.Error())
		}
		switch p := p.(type) {
		case *pgp.EncryptedKey:
			if recipients++; recipients > maxPackets {
				return nil, fmt.Errorf("PGP message for more than %d recipients", maxPackets)
			}
		case *pgp.SymmetricallyEncrypted:
			if recipients == 0 || !p.IntegrityProtected {
				return nil, errors.New("PGP message has no recipients or is not protected against changes")
			}
			return pgpMessage(data), nil
		case *pgp.AEADEncrypted:
			if recipients == 0 {
				return nil, errors.New("PGP message has no recipients")
			}
			return pgpMessage(data), nil
		default:
			return nil, errors.New("PGP message is not one that is encrypted for public keys only")
		}
	}
}

func (pgpMessage) protocol() string         { return protocolPGP }
func (pgpMessage) suits(k *privateKey) bool { return k.ring != nil }

func (m pgpMessage) open(k *privateKey) ([]byte, error) {
	limit := int64(maxWrapped)
	md, err := openpgp.ReadMessage(bytes.NewReader(m), k.ring, nil, &pgp.Config{MaxDecompressedMessageSize: &limit})
	if err != nil {
		return nil, fmt.Errorf("open PGP message: %w", err)
	}
	if !md.IsEncrypted || md.DecryptedWith.PrivateKey == nil {
		return nil, errors.New("PGP message was not decrypted with a key")
	}
	// Only at the end of the body the library says whether it was changed. The buffer does not grow, which would leave
	// copies behind.
	plain := bytes.NewBuffer(make([]byte, 0, maxWrapped+2*bytes.MinRead))
	n, err := plain.ReadFrom(io.LimitReader(md.UnverifiedBody, maxWrapped+1))
	if err == nil && n > maxWrapped {
		err = errors.New("too large")
	}
	if err != nil {
		clear(plain.Bytes())
		return nil, fmt.Errorf("open PGP message: %w", err)
	}
	return plain.Bytes(), nil
}

// parseRing reads a ring of private keys, at least one of which is there and usable. See parsePrivateKey.
func parseRing(data []byte) (*privateKey, error) {
	read := openpgp.ReadKeyRing
	if bytes.Contains(data, []byte("-----BEGIN PGP ")) {
		read = openpgp.ReadArmoredKeyRing
	}
	ring, err := read(bytes.NewReader(data))
	if err != nil || len(ring) == 0 { // the library's own error could quote the ring
		return nil, errors.New("is no ring of PGP's private keys")
	}
	usable, encrypted := false, false
	for _, k := range privateKeysOf(ring) {
		encrypted = encrypted || k.Encrypted
		usable = usable || !k.Encrypted && !k.Dummy()
	}
	switch {
	case usable:
		return &privateKey{ring: ring}, nil
	case encrypted:
		return nil, errPassphrase
	default:
		return nil, errors.New("is a ring of PGP's without private keys")
	}
}

func privateKeysOf(ring openpgp.EntityList) (keys []*pgp.PrivateKey) {
	for _, e := range ring {
		if e.PrivateKey != nil {
			keys = append(keys, e.PrivateKey)
		}
		for _, sub := range e.Subkeys {
			if sub.PrivateKey != nil {
				keys = append(keys, sub.PrivateKey)
			}
		}
	}
	return keys
}

// wipeRing overwrites the keys for decryption; those for signatures are of no use against us.
func wipeRing(ring openpgp.EntityList) {
	for _, k := range privateKeysOf(ring) {
		switch key := k.PrivateKey.(type) {
		case *rsa.PrivateKey:
			(&privateKey{rsa: key}).wipe()
		case *elgamal.PrivateKey:
			wipeInts(key.X)
		case *ecdh.PrivateKey:
			clear(key.D)
		case *x25519.PrivateKey:
			clear(key.Secret)
		case *x448.PrivateKey:
			clear(key.Secret)
		}
	}
}
