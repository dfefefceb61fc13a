// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package rootdisk makes the guest's encrypted root disk from a root file system: an erofs image, followed by its
// dm-verity hash tree, as the payload of a LUKS2 disk image. It needs neither root, nor a loop device, nor an external
// tool.
//
// The same source, key and random bytes give the same disk, bit for bit. For that, every time stamp is 0. Owners are
// those of the source; from a folder that somebody else than root reads, everything belongs to root. erofs images made
// here have no hard links: each name gets a copy of its own. Of extended attributes, security.capability and user.* are
// kept. Mount points that the agent needs are added where the source lacks them (see mountPoints).
//
// Payload: the erofs image (blocks of 4 KiB), then the hash tree (type 1, sha256), without a verity superblock: its
// fields come from the sealed boot config, and so every byte of the payload is covered by the root hash.
//
// This is build-host code: it is never linked into the agent.
package rootdisk

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/go-dmverity/pkg/verity"

	"github.com/cloister-cc/cloister/guestimage/luks2"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
)

// blockSize is the size in bytes of erofs blocks and of verity's data and hash blocks; it is also the LUKS2 sector.
const blockSize = luks2.SectorSize

// saltSize is the size of the verity salt in bytes.
const saltSize = 32

// Options say what Write makes.
type Options struct {
	// Source is the root file system: a folder, or a tar archive that is not compressed.
	Source string
	// Images are root file systems of container images by the absolute paths where they lie below the root, where the
	// source has nothing. They stay the caller's to close.
	Images map[string]*Layered
	// Output is the disk image to write. An existing file is replaced, in one step, once the new one is complete.
	// Its folder must have room for about twice the root file system (three times for a tar archive).
	Output string
	// Key is the disk key, layout.DiskKeySize bytes. It stays the caller's to wipe.
	Key *keys.Secret
	// Rand gives the volume key, salts and identifiers; nil means the system's random source.
	Rand io.Reader
}

// Result is what the guest must know about the disk.
type Result struct {
	// Root is the root part of the boot config.
	Root layout.Root
	// Header is the start of the disk to pin, Root.HeaderSize bytes. It holds no secret without the disk key.
	Header []byte
	// DataSize is the size of the erofs image in bytes.
	DataSize int64
}

// Write makes the disk image. On an error, no new file is left and an existing Output is as it was.
func Write(ctx context.Context, o Options) (*Result, error) {
	if o.Source == "" || o.Output == "" {
		return nil, errors.New("root disk: source and output must be named")
	}
	if n := len(o.Key.Bytes()); n != layout.DiskKeySize {
		return nil, fmt.Errorf("root disk: disk key has %d bytes, want %d", n, layout.DiskKeySize)
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	plain, err := scratchFile(filepath.Dir(o.Output))
	if err != nil {
		return nil, fmt.Errorf("root disk: %w", err)
	}
	defer func() { _ = plain.Close() }() // it has no name: nothing is left
	dataSize, err := writeFileSystem(ctx, plain, o.Source, o.Images)
	if err != nil {
		return nil, fmt.Errorf("root disk from %s: %w", o.Source, err)
	}
	tree, payloadSize, err := appendVerity(plain, dataSize, o.Rand)
	if err != nil {
		return nil, fmt.Errorf("root disk: %w", err)
	}
	header, err := writeDisk(ctx, o, plain, payloadSize)
	if err != nil {
		return nil, fmt.Errorf("root disk %s: %w", o.Output, err)
	}
	return &Result{
		Root: layout.Root{
			HeaderSize: luks2.HeaderSize, PayloadOffset: luks2.PayloadOffset, PayloadSize: payloadSize,
			SectorSize: luks2.SectorSize, Verity: *tree,
		},
		Header: header, DataSize: dataSize,
	}, nil
}

// scratchFile makes a file in dir that has no name, so that it is gone when it is closed, however the process ends.
func scratchFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".cloister-*")
	if err != nil {
		return nil, fmt.Errorf("make scratch file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("make scratch file: %w", err)
	}
	return f, nil
}

// appendVerity writes the hash tree behind the first dataSize bytes of f. It returns the tree's
// parameters and the whole size of f.
func appendVerity(f *os.File, dataSize int64, random io.Reader) (*layout.Verity, int64, error) {
	p := verity.DefaultParams()
	p.DataBlockSize, p.HashBlockSize = blockSize, blockSize
	p.DataBlocks = uint64(dataSize / blockSize)
	p.HashAreaOffset = uint64(dataSize)
	p.NoSuperblock = true
	p.Salt, p.SaltSize = make([]byte, saltSize), saltSize
	if _, err := io.ReadFull(random, p.Salt); err != nil {
		return nil, 0, fmt.Errorf("make verity salt: %w", err)
	}
	// The library opens files by name, and the scratch file has none of its own.
	name := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	root, err := verity.Create(&p, name, name)
	if err != nil {
		return nil, 0, fmt.Errorf("write verity tree: %w", err)
	}
	treeSize, err := verity.GetHashTreeSize(&p)
	if err != nil {
		return nil, 0, fmt.Errorf("size of verity tree: %w", err)
	}
	return &layout.Verity{
		RootHash: hex.EncodeToString(root), Salt: hex.EncodeToString(p.Salt), BlockSize: blockSize,
		DataBlocks: dataSize / blockSize, HashOffset: dataSize,
	}, dataSize + int64(treeSize), nil
}

// writeDisk encrypts the payload into a file beside o.Output, then puts that in its place.
func writeDisk(ctx context.Context, o Options, payload io.ReaderAt, size int64) (header []byte, err error) {
	v, err := luks2.New(size, o.Key.Bytes(), o.Rand)
	if err != nil {
		return nil, err
	}
	defer v.Wipe()
	f, err := os.CreateTemp(filepath.Dir(o.Output), ".cloister-*")
	if err != nil {
		return nil, fmt.Errorf("make disk image: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := v.WriteDisk(ctx, f, payload); err != nil {
		return nil, err
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("finish disk image: %w", err)
	}
	if err := os.Rename(f.Name(), o.Output); err != nil {
		return nil, fmt.Errorf("finish disk image: %w", err)
	}
	return v.Header(), nil
}
