// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package luks unlocks LUKS2 disks whose header the guest already knows. Nothing of the disk's own header is read: the
// library that unlocks gets the pinned copy, in a sealed memory file, because a header made by the host could open for
// any key, switch encryption off or crash PID 1. What comes out is still compared with the boot config before it
// becomes part of a device-mapper table.
//
// XTS has no integrity: what is read through such a device must be checked by dm-verity on top.
package luks

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	luksgo "github.com/anatol/luks.go"

	"github.com/cloister-cc/cloister/storage/dm"
)

// Params say which disk is unlocked, and what its header must say.
type Params struct {
	// Device is the path of the block device.
	Device string
	// Header is the pinned header: the start of the disk as the build host wrote it.
	Header []byte
	// PayloadOffset is where the encrypted payload starts on the device, in bytes.
	PayloadOffset int64
	// PayloadSize is the size of the payload in bytes.
	PayloadSize int64
	// SectorSize is the encryption sector size in bytes.
	SectorSize int
	// Name is the name of the device to make.
	Name string
}

// cipher is the only encryption that a pinned header may name.
const cipher = "aes-xts-plain64"

// ErrPassphrase means that the passphrase does not open the pinned header.
var ErrPassphrase = errors.New("passphrase does not open the header")

// Open unlocks the disk and returns the path of the node of the decrypted device. It keeps no copy of the passphrase and
// wipes nothing of the caller's. The volume key is left in the kernel only: freed copies of it in the Go heap are handed
// back to the kernel, which clears them when it runs with init_on_free=1. On an error no device is left.
func Open(p Params, passphrase []byte) (devicePath string, err error) {
	defer func() {
		runtime.GC()
		debug.FreeOSMemory()
	}()
	path, err := p.open(passphrase)
	if err != nil {
		return "", fmt.Errorf("unlock %s: %w", p.Device, err)
	}
	return path, nil
}

func (p Params) open(passphrase []byte) (string, error) {
	if err := errors.Join(dm.CheckName(p.Name), dm.CheckDevice(p.Device)); err != nil {
		return "", err
	}
	taken, err := dm.Exists(p.Name)
	if err != nil {
		return "", err
	}
	if taken {
		return "", fmt.Errorf("there is a device %s already", p.Name)
	}
	volume, err := p.unseal(passphrase)
	if err != nil {
		return "", err
	}
	if err := volume.SetupMapper(p.Name); err != nil {
		return "", errors.Join(fmt.Errorf("map device %s: %w", p.Name, err), removeIfThere(p.Name))
	}
	path, err := dm.Node(p.Name)
	if err != nil {
		return "", errors.Join(err, dm.Remove(p.Name))
	}
	return path, nil
}

// removeIfThere removes what a failed mapping may have left.
func removeIfThere(name string) error {
	there, err := dm.Exists(name)
	if err != nil || !there {
		return err
	}
	return dm.Remove(name)
}

// unseal recovers the volume key from the pinned header and checks all that the mapping will be made of.
func (p Params) unseal(passphrase []byte) (*luksgo.Volume, error) {
	if err := p.checkSize(); err != nil {
		return nil, err
	}
	header, err := sealedFile("luks2-header", p.Header)
	if err != nil {
		return nil, err
	}
	defer func() { _ = header.Close() }()
	device, err := luksgo.OpenWithHeader(p.Device, fmt.Sprintf("/proc/self/fd/%d", header.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open pinned header: %w", err)
	}
	defer func() { _ = device.Close() }()
	if v := device.Version(); v != 2 {
		return nil, fmt.Errorf("pinned header is LUKS version %d, want 2", v)
	}
	slots := device.Slots()
	if len(slots) != 1 {
		return nil, fmt.Errorf("pinned header has %d keyslots, want 1", len(slots))
	}
	device.FlagsClear() // the header's own flags, which could allow discards
	if err := device.FlagsAdd(luksgo.FlagNoReadWorkqueue, luksgo.FlagNoWriteWorkqueue); err != nil {
		return nil, fmt.Errorf("set flags: %w", err)
	}
	volume, err := device.UnsealVolume(slots[0], passphrase)
	if errors.Is(err, luksgo.ErrPassphraseDoesNotMatch) {
		return nil, ErrPassphrase
	}
	if err != nil {
		return nil, fmt.Errorf("recover volume key: %w", err)
	}
	if err := p.checkVolume(volume); err != nil {
		return nil, err
	}
	return volume, nil
}

// checkSize says whether the disk is too small for its payload.
func (p Params) checkSize() error {
	if p.PayloadOffset < 0 || p.PayloadSize <= 0 || p.PayloadOffset+p.PayloadSize < p.PayloadSize {
		return fmt.Errorf("payload at %d of %d bytes", p.PayloadOffset, p.PayloadSize)
	}
	f, err := os.Open(p.Device)
	if err != nil {
		return fmt.Errorf("open disk: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("size of disk: %w", err)
	}
	if size < p.PayloadOffset+p.PayloadSize {
		return fmt.Errorf("disk has %d bytes, its payload ends at %d: it was cut", size, p.PayloadOffset+p.PayloadSize)
	}
	return nil
}

// checkVolume compares what the library read from the pinned header with the boot config.
func (p Params) checkVolume(v *luksgo.Volume) error {
	for _, f := range []struct {
		name      string
		got, want any
	}{
		{"type", v.LuksType, "LUKS2"},
		{"device", v.BackingDevice, p.Device},
		{"cipher", v.StorageEncryption, cipher},
		{"sector size", v.StorageSectorSize, uint64(p.SectorSize)},
		{"payload offset", v.StorageOffset, uint64(p.PayloadOffset)},
		{"payload size", v.StorageSize, uint64(p.PayloadSize)},
		{"IV tweak", v.StorageIvTweak, uint64(0)},
		{"number of flags", len(v.Flags), 2},
	} {
		if f.got != f.want {
			return fmt.Errorf("pinned header and boot config differ: %s is %v, want %v", f.name, f.got, f.want)
		}
	}
	return nil
}
