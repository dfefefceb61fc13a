// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap"
	"github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/containers/ocicrypt/keywrap/pgp"
	"github.com/containers/ocicrypt/keywrap/pkcs7"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/keys"
)

// KeySize is the size of a packet recipient's key in bytes.
const KeySize = 32

// maxRecipients is how many recipients a guest accepts for a layer.
const maxRecipients = 16

// Protocols by which a layer's key is wrapped, as ocicrypt names them.
const (
	// Packet is that of Confidential Containers, the zero value.
	Packet = ""
	// JWE is JSON Web Encryption (RFC 7516).
	JWE = "jwe"
	// PKCS7 is the enveloped data of RFC 2315.
	PKCS7 = "pkcs7"
	// PGP is OpenPGP.
	PGP = "pgp"
)

// Recipient is somebody who can decrypt: a guest that has the key by a name, or who has a private key.
type Recipient struct {
	// Protocol is one of Packet, JWE, PKCS7, PGP, and says which of the other fields count.
	Protocol string
	// KeyURI is the key's name with Packet, kbs:///repository/type/tag.
	KeyURI string
	// Key has KeySize bytes with Packet. It stays the caller's.
	Key *keys.Secret
	// Public is a public key (JWE: PEM, DER or JWK), a certificate (PKCS7: PEM or DER) or a ring of public keys (PGP).
	Public []byte
	// Address is the mail address or name of the recipient's key in the ring of PGP.
	Address string
}

// wrapper returns ocicrypt's implementation of a protocol, nil for Packet.
func wrapper(protocol string) keywrap.KeyWrapper {
	switch protocol {
	case JWE:
		return jwe.NewKeyWrapper()
	case PKCS7:
		return pkcs7.NewKeyWrapper()
	case PGP:
		return pgp.NewKeyWrapper()
	default:
		return nil
	}
}

// wrapping serialises ocicrypt's wrappers: that of PKCS7 sets a package variable.
var wrapping sync.Mutex

func (r Recipient) check() error {
	if r.Protocol == Packet {
		if _, err := keys.ParseURI(r.KeyURI); err != nil {
			return err
		}
		if n := len(r.Key.Bytes()); n != KeySize {
			return fmt.Errorf("key %s has %d bytes, want %d", r.KeyURI, n, KeySize)
		}
		return nil
	}
	if wrapper(r.Protocol) == nil {
		return fmt.Errorf("recipient protocol %.40q is none of %s, %s, %s", r.Protocol, JWE, PKCS7, PGP)
	}
	_, err := wrapWith(r.Protocol, []byte("{}"), []Recipient{r}) // finds what is wrong before a layer is read
	return err
}

func checkRecipients(recipients []Recipient) error {
	if len(recipients) == 0 {
		return errors.New("encrypt: no recipients")
	}
	if len(recipients) > maxRecipients {
		return fmt.Errorf("encrypt: %d recipients, at most %d are allowed", len(recipients), maxRecipients)
	}
	for _, r := range recipients {
		if err := r.check(); err != nil {
			return err
		}
	}
	return nil
}

// wrapAll wraps a layer's key for all recipients and returns the annotations.
func wrapAll(private []byte, recipients []Recipient) (map[string]string, error) {
	var packets []string
	byProtocol := make(map[string][]Recipient)
	for _, r := range recipients {
		if r.Protocol != Packet {
			byProtocol[r.Protocol] = append(byProtocol[r.Protocol], r)
			continue
		}
		p, err := wrap(private, r)
		if err != nil {
			return nil, err
		}
		packets = append(packets, base64.StdEncoding.EncodeToString(p))
	}
	annotations := make(map[string]string)
	if packets != nil {
		annotations[decrypt.KeysAnnotation] = strings.Join(packets, ",")
	}
	for protocol, rs := range byProtocol {
		wrapped, err := wrapWith(protocol, private, rs)
		if err != nil {
			return nil, err
		}
		annotations[decrypt.KeysPrefix+protocol] = base64.StdEncoding.EncodeToString(wrapped)
	}
	return annotations, nil
}

// wrapWith wraps a layer's key for recipients of one of ocicrypt's protocols.
func wrapWith(protocol string, private []byte, recipients []Recipient) ([]byte, error) {
	parameters := make(map[string][][]byte)
	for _, r := range recipients {
		switch protocol {
		case JWE:
			parameters["pubkeys"] = append(parameters["pubkeys"], r.Public)
		case PKCS7:
			parameters["x509s"] = append(parameters["x509s"], r.Public)
		case PGP:
			parameters["gpg-recipients"] = append(parameters["gpg-recipients"], []byte(r.Address))
			parameters["gpg-pubkeyringfile"] = [][]byte{r.Public}
		}
	}
	wrapping.Lock()
	defer wrapping.Unlock()
	wrapped, err := wrapper(protocol).WrapKeys(&config.EncryptConfig{Parameters: parameters}, private)
	if err == nil && len(wrapped) == 0 {
		err = errors.New("nothing was wrapped")
	}
	if err != nil {
		return nil, fmt.Errorf("wrap layer key for %s: %w", protocol, err)
	}
	return wrapped, nil
}

// packet is a wrapped layer key, version 1, with the fields in the order in which coco_keyprovider writes them.
type packet struct {
	KeyID    string `json:"kid"`
	Wrapped  []byte `json:"wrapped_data"`
	IV       []byte `json:"iv"`
	WrapType string `json:"wrap_type"`
}

// wrap encrypts a layer key for a recipient with AES-256-GCM and a random IV.
func wrap(private []byte, r Recipient) ([]byte, error) {
	block, err := aes.NewCipher(r.Key.Bytes())
	if err != nil {
		return nil, fmt.Errorf("wrap layer key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("wrap layer key: %w", err)
	}
	iv := make([]byte, aead.NonceSize())
	_, _ = rand.Read(iv) // never fails, see crypto/rand
	p, err := json.Marshal(packet{KeyID: r.KeyURI, Wrapped: aead.Seal(nil, iv, private, nil), IV: iv, WrapType: decrypt.WrapGCM})
	if err != nil {
		return nil, fmt.Errorf("encode packet: %w", err)
	}
	return p, nil
}
