// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package verity maps dm-verity devices: read-only block devices whose every block is checked against a root hash when
// it is read. Parameters are typed values from the sealed boot config; a superblock on the disk is never read.
//
// A block that does not match is an I/O error for its reader. check_at_most_once is never used: the host could change a
// block after its first check.
package verity

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/anatol/devmapper.go"

	"github.com/cloister-cc/cloister/storage/dm"
)

// Params describe a hash tree and the data that it covers, on one device. Hashes are sha256, the tree is of type 1; see
// the kernel's Documentation/admin-guide/device-mapper/verity.rst.
type Params struct {
	// Device is the path of the block device.
	Device string
	// RootHash is the root of the tree, 32 bytes.
	RootHash []byte
	// Salt is hashed before each block; at most 256 bytes.
	Salt []byte
	// BlockSize is the size of data and hash blocks in bytes; it must be 4096.
	BlockSize int
	// DataBlocks is the number of data blocks, which start at the start of the device.
	DataBlocks int64
	// HashOffset is where the tree starts on the device, in bytes.
	HashOffset int64
	// Name is the name of the device to make.
	Name string
}

const (
	blockSize   = 4096
	maxSaltSize = 256
	maxBlocks   = 1 << 40 // 4 PiB; keeps every product of sizes far from overflow
	hashType    = 1       // the salt is hashed first
)

// Open maps the device, checks its first block and returns the path of its node. On an error nothing is left.
func Open(p Params) (devicePath string, err error) {
	t, err := p.table()
	if err != nil {
		return "", fmt.Errorf("verity: %w", err)
	}
	path, err := dm.Map(p.Name, "CLOISTER-VERITY-"+p.Name, true, t)
	if err != nil {
		return "", fmt.Errorf("verity on %s: %w", p.Device, err)
	}
	if err := readBlock(path); err != nil {
		err = fmt.Errorf("verity on %s: data or root hash is wrong, or the disk was modified: %w", p.Device, err)
		return "", errors.Join(err, dm.Remove(p.Name))
	}
	return path, nil
}

// readBlock reads the first block, so that a wrong root hash is told apart from a broken file system.
func readBlock(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = f.ReadAt(make([]byte, blockSize), 0)
	return errors.Join(err, f.Close())
}

// table checks the parameters and returns the device's table.
func (p Params) table() (devmapper.VerityTable, error) {
	if err := p.check(); err != nil {
		return devmapper.VerityTable{}, err
	}
	salt := "-" // the table's word for none
	if len(p.Salt) > 0 {
		salt = hex.EncodeToString(p.Salt)
	}
	blocks := uint64(p.DataBlocks)
	return devmapper.VerityTable{
		Length: blocks * blockSize, HashType: hashType,
		DataDevice: p.Device, HashDevice: p.Device, DataBlockSize: blockSize, HashBlockSize: blockSize,
		NumDataBlocks: blocks, HashStartBlock: uint64(p.HashOffset / blockSize),
		Algorithm: "sha256", Digest: hex.EncodeToString(p.RootHash), Salt: salt,
	}, nil
}

func (p Params) check() error {
	if err := dm.CheckName(p.Name); err != nil {
		return err
	}
	if err := dm.CheckDevice(p.Device); err != nil {
		return err
	}
	switch {
	case len(p.RootHash) != sha256.Size:
		return fmt.Errorf("root hash has %d bytes, want %d", len(p.RootHash), sha256.Size)
	case len(p.Salt) > maxSaltSize:
		return fmt.Errorf("salt has %d bytes, want at most %d", len(p.Salt), maxSaltSize)
	case p.BlockSize != blockSize:
		return fmt.Errorf("block size %d, only %d is supported", p.BlockSize, blockSize)
	case p.DataBlocks <= 0 || p.DataBlocks > maxBlocks:
		return fmt.Errorf("%d data blocks, want 1 to %d", p.DataBlocks, int64(maxBlocks))
	case p.HashOffset%blockSize != 0 || p.HashOffset < p.DataBlocks*blockSize:
		return fmt.Errorf("hash offset %d is not a block behind the data", p.HashOffset)
	}
	return nil
}
