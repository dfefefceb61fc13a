// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package story

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/cloister-cc/cloister/initramfs"
)

// NewCanary returns 64 random hexadecimal digits: text that stands nowhere by chance.
func NewCanary() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// InitramfsFile returns the content of one file of an initramfs.
func InitramfsFile(image, path string) ([]byte, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, closer, err := initramfs.NewImageReader(f)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s has no %s", image, path)
		}
		if err != nil {
			return nil, err
		}
		if e.Path == path {
			return io.ReadAll(r)
		}
	}
}

// segmentSize is what a TCP segment on Ethernet carries.
const segmentSize = 1460

// WriteCapture writes a capture of a connection that carried data without encryption: Ethernet, IPv4 and TCP, each segment
// before the one that precedes it in the stream.
func WriteCapture(path string, data []byte) error {
	out := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	out = append(out, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	out = binary.LittleEndian.AppendUint32(out, 1<<20)
	out = binary.LittleEndian.AppendUint32(out, 1) // Ethernet
	seq := uint32(1)
	var packets [][]byte
	for part := range slices.Chunk(data, segmentSize) {
		frame := append(make([]byte, 12), 8, 0) // IPv4
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, 6
		binary.BigEndian.PutUint16(ip[2:], uint16(40+len(part)))
		copy(ip[12:], []byte{10, 0, 2, 2, 10, 0, 2, 15})
		tcp := make([]byte, 20)
		binary.BigEndian.PutUint16(tcp, 80)
		binary.BigEndian.PutUint16(tcp[2:], 50000)
		binary.BigEndian.PutUint32(tcp[4:], seq)
		tcp[12], tcp[13] = 0x50, 0x10
		packets = append(packets, slices.Concat(frame, ip, tcp, part))
		seq += uint32(len(part))
	}
	for pair := range slices.Chunk(packets, 2) {
		slices.Reverse(pair)
		for _, p := range pair {
			record := make([]byte, 16)
			binary.LittleEndian.PutUint32(record[8:], uint32(len(p)))
			binary.LittleEndian.PutUint32(record[12:], uint32(len(p)))
			out = append(append(out, record...), p...)
		}
	}
	return os.WriteFile(path, out, 0o600)
}

// Plant writes a copy of a file with a secret in its middle.
func Plant(from, to string, secret []byte) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, slices.Insert(data, len(data)/2, secret...), 0o600) //nolint:gosec // G703: the caller chooses the path
}
