// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package luks2

import (
	"crypto/aes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/google/uuid"
	"golang.org/x/crypto/pbkdf2"
	"golang.org/x/crypto/xts"

	"github.com/cloister-cc/cloister/keys"
)

// Sizes and offsets of the header's parts, in bytes.
const (
	metadataSize  = 16 << 10 // one metadata area: binary header and JSON
	binarySize    = 4096
	jsonSize      = metadataSize - binarySize
	keyslotOffset = 2 * metadataSize
	keyslotsSize  = HeaderSize - keyslotOffset
	keyslotSize   = (volumeKeySize*stripes + binarySize - 1) / binarySize * binarySize
	saltSize      = 32
	iterations    = 1000 // the least that the format allows
	hashName      = "sha256"
)

// Magic numbers of the primary and the secondary metadata area.
const (
	magicPrimary   = "LUKS\xba\xbe"
	magicSecondary = "SKUL\xba\xbe"
)

// binaryHeader is the start of a metadata area, section 2.1 of the specification; numbers are big-endian.
type binaryHeader struct {
	Magic       [6]byte
	Version     uint16
	Size        uint64
	Sequence    uint64
	Label       [48]byte
	ChecksumAlg [32]byte
	Salt        [64]byte
	UUID        [40]byte
	Subsystem   [48]byte
	Offset      uint64
	_           [184]byte
	Checksum    [64]byte
	_           [7 * 512]byte
}

// checksumOffset is where Checksum lies in an encoded binaryHeader.
const checksumOffset = 0x1c0

type header struct {
	encoded []byte // HeaderSize bytes
	uuid    string
}

// salts are the random parts of a header besides the volume key and the keyslot's stripes.
type salts struct {
	UUID               uuid.UUID
	Keyslot, Digest    [saltSize]byte
	Primary, Secondary [64]byte
}

func newHeader(payloadSize int64, volumeKey, passphrase []byte, random io.Reader) (*header, error) {
	var s salts
	for _, b := range [][]byte{s.UUID[:], s.Keyslot[:], s.Digest[:], s.Primary[:], s.Secondary[:]} {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, fmt.Errorf("luks2: make salts: %w", err)
		}
	}
	s.UUID[6] = s.UUID[6]&0x0f | 0x40 // version 4, RFC 9562 section 5.4
	s.UUID[8] = s.UUID[8]&0x3f | 0x80

	h := &header{encoded: make([]byte, HeaderSize), uuid: s.UUID.String()}
	digest := pbkdf2.Key(volumeKey, s.Digest[:], iterations, sha256.Size, sha256.New)
	text, err := encodeMetadata(payloadSize, s, digest)
	if err != nil {
		return nil, err
	}
	putMetadata(h.encoded[:metadataSize], binaryHeaderOf(magicPrimary, 0, h.uuid, s.Primary), text)
	putMetadata(h.encoded[metadataSize:2*metadataSize], binaryHeaderOf(magicSecondary, metadataSize, h.uuid, s.Secondary), text)
	if err := putKeyslot(h.encoded[keyslotOffset:], volumeKey, passphrase, s.Keyslot[:], random); err != nil {
		return nil, err
	}
	return h, nil
}

func binaryHeaderOf(magic string, offset uint64, id string, salt [64]byte) *binaryHeader {
	b := &binaryHeader{Version: 2, Size: metadataSize, Sequence: 1, Salt: salt, Offset: offset}
	copy(b.Magic[:], magic)
	copy(b.ChecksumAlg[:], hashName)
	copy(b.UUID[:], id)
	return b
}

// putMetadata writes one metadata area and its checksum, which covers the whole area with the checksum as zeros.
func putMetadata(area []byte, b *binaryHeader, text []byte) {
	// The header has a fixed size that fits the area, so that Encode cannot fail.
	_, _ = binary.Encode(area, binary.BigEndian, b)
	copy(area[binarySize:], text)
	sum := sha256.Sum256(area)
	copy(area[checksumOffset:], sum[:])
}

// putKeyslot writes the volume key, split and encrypted with a key that is derived from the passphrase.
func putKeyslot(area, volumeKey, passphrase, salt []byte, random io.Reader) error {
	split := area[:volumeKeySize*stripes]
	if err := afSplit(split, volumeKey, random); err != nil {
		return err
	}
	derived := pbkdf2.Key(passphrase, salt, iterations, volumeKeySize, sha256.New)
	defer keys.Wipe(derived)
	cipher, err := xts.NewCipher(aes.NewCipher, derived)
	if err != nil {
		return fmt.Errorf("luks2: set up keyslot cipher: %w", err)
	}
	for i := range len(split) / ivUnit { // the keyslot area always has sectors of 512 bytes
		sector := split[i*ivUnit : (i+1)*ivUnit]
		cipher.Encrypt(sector, sector, uint64(i))
	}
	return nil
}

// The JSON metadata, section 3 of the specification. Numbers of 64 bits are strings there.
type (
	metadata struct {
		Keyslots map[string]keyslot  `json:"keyslots"`
		Tokens   map[string]struct{} `json:"tokens"`
		Segments map[string]segment  `json:"segments"`
		Digests  map[string]digest   `json:"digests"`
		Config   config              `json:"config"`
	}
	keyslot struct {
		Type    string `json:"type"`
		KeySize int    `json:"key_size"`
		AF      af     `json:"af"`
		Area    area   `json:"area"`
		KDF     kdf    `json:"kdf"`
	}
	af struct {
		Type    string `json:"type"`
		Stripes int    `json:"stripes"`
		Hash    string `json:"hash"`
	}
	area struct {
		Type       string `json:"type"`
		Offset     int64  `json:"offset,string"`
		Size       int64  `json:"size,string"`
		Encryption string `json:"encryption"`
		KeySize    int    `json:"key_size"`
	}
	kdf struct {
		Type       string `json:"type"`
		Hash       string `json:"hash"`
		Iterations int    `json:"iterations"`
		Salt       []byte `json:"salt"`
	}
	segment struct {
		Type       string `json:"type"`
		Offset     int64  `json:"offset,string"`
		Size       int64  `json:"size,string"`
		IVTweak    int64  `json:"iv_tweak,string"`
		Encryption string `json:"encryption"`
		SectorSize int    `json:"sector_size"`
	}
	digest struct {
		Type       string   `json:"type"`
		Keyslots   []string `json:"keyslots"`
		Segments   []string `json:"segments"`
		Hash       string   `json:"hash"`
		Iterations int      `json:"iterations"`
		Salt       []byte   `json:"salt"`
		Digest     []byte   `json:"digest"`
	}
	config struct {
		JSONSize     int64 `json:"json_size,string"`
		KeyslotsSize int64 `json:"keyslots_size,string"`
	}
)

func encodeMetadata(payloadSize int64, s salts, sum []byte) ([]byte, error) {
	const id = "0" // of the only keyslot, segment and digest
	text, err := json.Marshal(metadata{
		Keyslots: map[string]keyslot{id: {
			Type:    "luks2",
			KeySize: volumeKeySize,
			AF:      af{Type: "luks1", Stripes: stripes, Hash: hashName},
			Area:    area{Type: "raw", Offset: keyslotOffset, Size: keyslotSize, Encryption: Cipher, KeySize: volumeKeySize},
			KDF:     kdf{Type: "pbkdf2", Hash: hashName, Iterations: iterations, Salt: s.Keyslot[:]},
		}},
		Tokens: map[string]struct{}{},
		Segments: map[string]segment{id: {
			Type: "crypt", Offset: PayloadOffset, Size: payloadSize, Encryption: Cipher, SectorSize: SectorSize,
		}},
		Digests: map[string]digest{id: {
			Type: "pbkdf2", Keyslots: []string{id}, Segments: []string{id},
			Hash: hashName, Iterations: iterations, Salt: s.Digest[:], Digest: sum,
		}},
		Config: config{JSONSize: jsonSize, KeyslotsSize: keyslotsSize},
	})
	if err != nil {
		return nil, fmt.Errorf("luks2: encode metadata: %w", err)
	}
	if len(text) >= jsonSize { // the text ends with at least one zero byte
		return nil, fmt.Errorf("luks2: metadata of %d bytes does not fit %d", len(text), jsonSize)
	}
	return text, nil
}
