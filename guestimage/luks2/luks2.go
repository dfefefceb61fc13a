// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package luks2 writes LUKS2 encrypted disk images, without device-mapper, root or an external tool.
//
// It writes one fixed shape only, so that the guest can pin it: two metadata areas of 16 KiB, one keyslot
// (pbkdf2-sha256, 1000 iterations: the passphrase is a random key, stretching it would only cost boot time), one digest
// and one aes-xts-plain64 segment of 4096-byte sectors with a 512-bit random volume key. cryptsetup opens such a disk.
//
// The format is that of the LUKS2 On-Disk Format Specification, version 1.1.1 (cryptsetup project).
//
// This is build-host code: it is never linked into the agent.
package luks2

import (
	"context"
	"crypto/aes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/crypto/xts"
	"golang.org/x/sync/errgroup"

	"github.com/cloister-cc/cloister/keys"
)

const (
	// HeaderSize is the number of bytes before the payload: both metadata areas and the keyslot area.
	HeaderSize = 512 << 10
	// PayloadOffset is where the encrypted payload starts on the disk, in bytes.
	PayloadOffset = HeaderSize
	// SectorSize is the encryption sector size in bytes; the payload is whole sectors.
	SectorSize = 4096
	// Cipher is the encryption of the payload and of the keyslot, in dm-crypt's notation.
	Cipher = "aes-xts-plain64"
	// MaxPassphraseSize is the longest passphrase in bytes; it is cryptsetup's limit for what is typed.
	MaxPassphraseSize = 512
)

const (
	volumeKeySize = 64       // AES-256 in XTS mode: two keys of 32 bytes
	chunkSize     = 1 << 20  // what a worker encrypts at a time, whole sectors
	maxPayload    = 16 << 40 // 16 TiB, far above any root disk and far below every overflow
	ivUnit        = 512      // plain64 counts sectors of 512 bytes, whatever the encryption sector size
)

// Volume is a new LUKS2 volume: its header and, until Wipe, its volume key.
type Volume struct {
	header      []byte
	uuid        string
	payloadSize int64
	key         *keys.Secret
}

// New makes a volume with a random volume key for a payload of payloadSize bytes (whole sectors). The passphrase opens
// its only keyslot. All that is random comes from random, in a fixed order: the same bytes make the same header.
func New(payloadSize int64, passphrase []byte, random io.Reader) (*Volume, error) {
	if payloadSize <= 0 || payloadSize > maxPayload || payloadSize%SectorSize != 0 {
		return nil, fmt.Errorf("luks2: payload size %d is not between 1 sector and 16 TiB in whole sectors of %d bytes", payloadSize, SectorSize)
	}
	if len(passphrase) == 0 || len(passphrase) > MaxPassphraseSize {
		return nil, fmt.Errorf("luks2: passphrase has %d bytes, want 1 to %d", len(passphrase), MaxPassphraseSize)
	}
	key := keys.NewSecret(make([]byte, volumeKeySize))
	if _, err := io.ReadFull(random, key.Bytes()); err != nil {
		return nil, fmt.Errorf("luks2: make volume key: %w", err)
	}
	h, err := newHeader(payloadSize, key.Bytes(), passphrase, random)
	if err != nil {
		key.Wipe()
		return nil, err
	}
	return &Volume{header: h.encoded, uuid: h.uuid, payloadSize: payloadSize, key: key}, nil
}

// Header returns the HeaderSize bytes that come before the payload. They belong to the volume.
func (v *Volume) Header() []byte { return v.header }

// UUID returns the volume's UUID in text form.
func (v *Volume) UUID() string { return v.uuid }

// Wipe forgets the volume key; the volume can write nothing afterwards.
func (v *Volume) Wipe() { v.key.Wipe() }

// WriteDisk writes the header and the encrypted payload to disk. It reads exactly the payload size given to New; a
// payload that ends earlier is an error. It uses every core and about 1 MiB of memory for each.
func (v *Volume) WriteDisk(ctx context.Context, disk io.WriterAt, payload io.ReaderAt) error {
	if len(v.key.Bytes()) != volumeKeySize {
		return errors.New("luks2: volume key is wiped")
	}
	cipher, err := xts.NewCipher(aes.NewCipher, v.key.Bytes())
	if err != nil {
		return fmt.Errorf("luks2: set up cipher: %w", err)
	}
	if _, err := disk.WriteAt(v.header, 0); err != nil {
		return fmt.Errorf("luks2: write header: %w", err)
	}
	var next atomic.Int64 // offset of the next chunk that no worker has taken
	group, ctx := errgroup.WithContext(ctx)
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() error {
			buf := make([]byte, min(chunkSize, v.payloadSize))
			defer clear(buf)
			for {
				off := next.Add(chunkSize) - chunkSize
				if off >= v.payloadSize {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				chunk := buf[:min(chunkSize, v.payloadSize-off)]
				if err := encryptChunk(cipher, disk, payload, chunk, off); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// encryptChunk copies len(buf) bytes at off from the payload to the disk, encrypted.
func encryptChunk(cipher *xts.Cipher, disk io.WriterAt, payload io.ReaderAt, buf []byte, off int64) error {
	if n, err := payload.ReadAt(buf, off); n < len(buf) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("luks2: read payload at %d: %w", off, err)
	}
	for i := 0; i < len(buf); i += SectorSize {
		sector := buf[i : i+SectorSize]
		cipher.Encrypt(sector, sector, uint64(off+int64(i))/ivUnit)
	}
	if _, err := disk.WriteAt(buf, PayloadOffset+off); err != nil {
		return fmt.Errorf("luks2: write payload at %d: %w", off, err)
	}
	return nil
}
