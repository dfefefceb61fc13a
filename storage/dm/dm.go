// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package dm maps device-mapper devices: what storage/luks and storage/verity share. There is no udev in the guest, so a
// device is known by the node /dev/dm-N, which is made here where devtmpfs has not.
//
// Tables are texts of words for the kernel. Whatever goes into one must have been checked by its type or by CheckDevice,
// and must never come from a disk.
package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/anatol/devmapper.go"
	"golang.org/x/sys/unix"
)

// maxName is the longest device name in bytes, without the kernel's zero byte (DM_NAME_LEN).
const maxName = 127

// kernel is what the package asks of device-mapper.
type kernel struct {
	create func(name, uuid string) error
	load   func(name string, flags uint32, tables ...devmapper.Table) error
	resume func(name string) error
	remove func(name string) error
	info   func(name string) (*devmapper.DeviceInfo, error)
	dev    string // folder of device nodes
}

func system() kernel {
	return kernel{
		create: devmapper.Create, load: devmapper.Load, resume: devmapper.Resume, remove: devmapper.Remove,
		info: devmapper.InfoByName, dev: "/dev",
	}
}

// Map makes the device name with one table and returns the path of its node. On an error nothing is left.
func Map(name, uuid string, readOnly bool, table devmapper.Table) (string, error) {
	return system().mapDevice(name, uuid, readOnly, table)
}

// Exists tells whether there is a device of that name.
func Exists(name string) (bool, error) { return system().exists(name) }

// Node returns the path of the node of a device, and makes the node if it is missing.
func Node(name string) (string, error) { return system().node(name) }

// Remove removes a device and its node. It fails while the device is in use.
func Remove(name string) error { return system().removeDevice(name) }

// CheckName says what is wrong with a device name.
func CheckName(name string) error {
	if name == "" || len(name) > maxName || name == "." || name == ".." || !only(name, "-_.") {
		return fmt.Errorf("device name %q: want 1 to %d letters, digits, '-', '_' or '.'", name, maxName)
	}
	return nil
}

// CheckDevice says what is wrong with a device path that is to become part of a table: it must be absolute and hold
// nothing that the kernel reads as the end of a word.
func CheckDevice(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || !only(path, "-_./") {
		return fmt.Errorf("device %q is not a plain absolute path", path)
	}
	return nil
}

// only tells whether s consists of ASCII letters, digits and the extra characters.
func only(s, extra string) bool {
	for _, r := range []byte(s) {
		letter := r|0x20 >= 'a' && r|0x20 <= 'z'
		if !letter && (r < '0' || r > '9') && strings.IndexByte(extra, r) < 0 {
			return false
		}
	}
	return true
}

func (k kernel) mapDevice(name, uuid string, readOnly bool, table devmapper.Table) (path string, err error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	// The kernel refuses a name that is taken, so that what is removed below is always ours.
	if err := k.create(name, uuid); err != nil {
		return "", fmt.Errorf("create device %s: %w", name, explain(err))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.removeDevice(name))
		}
	}()
	flags := uint32(0)
	if readOnly {
		flags = devmapper.ReadOnlyFlag
	}
	if err := k.load(name, flags, table); err != nil {
		return "", fmt.Errorf("load table of device %s: %w", name, err)
	}
	if err := k.resume(name); err != nil {
		return "", fmt.Errorf("resume device %s: %w", name, err)
	}
	return k.node(name)
}

// explain adds what to do to an error that users will meet.
func explain(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: is the kernel module dm-mod loaded?", err)
	}
	return err
}

func (k kernel) exists(name string) (bool, error) {
	_, err := k.info(name)
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up device %s: %w", name, explain(err))
	}
	return true, nil
}

func (k kernel) node(name string) (string, error) {
	info, err := k.info(name)
	if err != nil {
		return "", fmt.Errorf("look up device %s: %w", name, explain(err))
	}
	path := filepath.Join(k.dev, "dm-"+strconv.FormatUint(uint64(unix.Minor(info.DevNo)), 10))
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case errors.Is(err, unix.ENOENT):
		if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(info.DevNo)); err != nil {
			return "", fmt.Errorf("make node %s: %w", path, os.NewSyscallError("mknod", err))
		}
	case err != nil:
		return "", fmt.Errorf("look at %s: %w", path, os.NewSyscallError("lstat", err))
	case st.Mode&unix.S_IFMT != unix.S_IFBLK || uint64(st.Rdev) != info.DevNo: //nolint:unconvert // 32 bits on some
		return "", fmt.Errorf("%s is not the node of device %s", path, name)
	}
	return path, nil
}

func (k kernel) removeDevice(name string) error {
	path, nodeErr := k.node(name)
	if err := k.remove(name); err != nil {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	if nodeErr != nil {
		return nil //nolint:nilerr // no node, nothing to tidy up
	}
	// devtmpfs has removed its own node by now; one that we made is still there.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove node: %w", err)
	}
	return nil
}
