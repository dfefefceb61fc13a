// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package luks

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/storage/dm"
)

// scratchDisk returns the block device that tests may overwrite. Only the guest that tests run in has one.
func scratchDisk(t *testing.T) string {
	t.Helper()
	disk := os.Getenv("CLOISTER_TEST_DISK")
	if disk == "" {
		if os.Getenv("CLOISTER_GUEST") == "1" {
			t.Fatal("CLOISTER_GUEST=1, but CLOISTER_TEST_DISK names no disk")
		}
		t.Skip("needs a scratch disk and dm-crypt: the guest's tests cover it (make test-guest)")
	}
	return disk
}

// onDisk writes the test's disk to the scratch disk.
func onDisk(t *testing.T) Params {
	t.Helper()
	p := testDisk(t)
	data, err := os.ReadFile(p.Device)
	if err != nil {
		t.Fatal(err)
	}
	p.Device = scratchDisk(t)
	f, err := os.OpenFile(p.Device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(data, 0)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestKernel has dm-crypt decrypt what the build host's code encrypted.
func TestKernel(t *testing.T) {
	scratchDisk(t)
	p := onDisk(t)
	pass := testPassphrase()
	path, err := Open(p, pass)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dm.Remove(p.Name); err != nil {
			t.Error(err)
		}
	})
	if !bytes.Equal(pass, testPassphrase()) {
		t.Error("the caller's passphrase was changed")
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, testPayload()) {
		t.Errorf("%s holds %d bytes, want the payload (%v)", path, len(got), err)
	}
	if ok, err := filepath.Match("/dev/dm-*", path); !ok || err != nil {
		t.Errorf("path %s", path)
	}
	if _, err := Open(p, pass); err == nil {
		t.Error("the name is taken, but a second device was mapped")
	}
	if there, err := dm.Exists(p.Name); !there || err != nil {
		t.Errorf("the first device is gone: %v", err)
	}
}

// TestKernelNothingLeft checks that a refused disk leaves no device behind.
func TestKernelNothingLeft(t *testing.T) {
	scratchDisk(t)
	p := onDisk(t)
	if _, err := Open(p, []byte("wrong")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("wrong passphrase: %v", err)
	}
	// A disk that is in use: the kernel refuses the table after the device was created.
	f, err := os.OpenFile(p.Device, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Open(p, testPassphrase()); !errors.Is(err, unix.EBUSY) {
		t.Errorf("disk in use: %v", err)
	}
	if there, err := dm.Exists(p.Name); there || err != nil {
		t.Errorf("a device is left (%v)", err)
	}
}
