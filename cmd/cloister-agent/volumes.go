// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/storage/disk"
	"github.com/cloister-cc/cloister/storage/luks"
	"github.com/cloister-cc/cloister/storage/verity"
)

// Names of the device-mapper devices of the root disk.
const (
	cryptName  = "cloister-root-crypt"
	verityName = "cloister-root"
)

// volumes opens the root disk with the storage packages; it implements boot.Volumes.
type volumes struct{ reaper *proc.Reaper }

func (volumes) Find(ctx context.Context, header []byte) (string, error) {
	return disk.Finder{Sys: "/sys", Dev: "/dev"}.ByHeader(ctx, header)
}

// unlockCommand makes the agent unlock a disk and exit, see volumes.Unlock.
const unlockCommand = "unlock-disk"

// Unlock starts this program a second time for the one task that touches the disk key.
func (v volumes) Unlock(ctx context.Context, device string) (string, error) {
	return v.reaper.Run(ctx, "/proc/self/exe", unlockCommand, device)
}

// unlock is the second program.
func unlock(device string, header, passphrase []byte, r layout.Root) (string, error) {
	return luks.Open(luks.Params{
		Device:        device,
		Header:        header,
		PayloadOffset: r.PayloadOffset,
		PayloadSize:   r.PayloadSize,
		SectorSize:    r.SectorSize,
		Name:          cryptName,
	}, passphrase)
}

func (volumes) Verify(device string, v layout.Verity) (string, error) {
	rootHash, err := hex.DecodeString(v.RootHash)
	if err != nil {
		return "", fmt.Errorf("decode verity root hash: %w", err)
	}
	salt, err := hex.DecodeString(v.Salt)
	if err != nil {
		return "", fmt.Errorf("decode verity salt: %w", err)
	}
	return verity.Open(verity.Params{
		Device:     device,
		RootHash:   rootHash,
		Salt:       salt,
		BlockSize:  v.BlockSize,
		DataBlocks: v.DataBlocks,
		HashOffset: v.HashOffset,
		Name:       verityName,
	})
}
