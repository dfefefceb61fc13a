// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package verity_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/guestimage/rootdisk"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/storage/disk"
	"github.com/cloister-cc/cloister/storage/dm"
	"github.com/cloister-cc/cloister/storage/luks"
	"github.com/cloister-cc/cloister/storage/mount"
	"github.com/cloister-cc/cloister/storage/verity"
)

const (
	cryptName  = "cloister-chain-crypt"
	verityName = "cloister-chain-verity"
)

// chain is a root disk on the guest's scratch disk, and how it is opened.
type chain struct {
	t      *testing.T
	disk   string
	key    *keys.Secret
	result *rootdisk.Result
	secret []byte // content of the file "secret" of the root
}

// newChain makes a root disk with the build host's code and writes it to the scratch disk.
func newChain(t *testing.T) *chain {
	t.Helper()
	c := &chain{t: t, disk: os.Getenv("CLOISTER_TEST_DISK"), key: keys.NewSecret(make([]byte, layout.DiskKeySize)), secret: make([]byte, 300_000)}
	if c.disk == "" {
		if os.Getenv("CLOISTER_GUEST") == "1" {
			t.Fatal("CLOISTER_GUEST=1, but CLOISTER_TEST_DISK names no disk")
		}
		t.Skip("needs a scratch disk, dm-crypt, dm-verity and erofs: the guest's tests cover it (make test-guest)")
	}
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{3}), c.secret)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{4}), c.key.Bytes())
	source := t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(source, "secret"), c.secret, 0o640),
		os.WriteFile(filepath.Join(source, "small"), []byte("small"), 0o644),
		os.Symlink("small", filepath.Join(source, "link")),
	); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "root.img")
	var err error
	if c.result, err = rootdisk.Write(t.Context(), rootdisk.Options{Source: source, Output: image, Key: c.key}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	c.write(data, 0)
	return c
}

func (c *chain) write(data []byte, off int64) {
	c.t.Helper()
	f, err := os.OpenFile(c.disk, os.O_RDWR, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	_, err = f.WriteAt(data, off)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		c.t.Fatal(err)
	}
}

// flip changes one bit of the disk.
func (c *chain) flip(off int64) {
	c.t.Helper()
	f, err := os.Open(c.disk)
	if err != nil {
		c.t.Fatal(err)
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	if err := errors.Join(err, f.Close()); err != nil {
		c.t.Fatal(err)
	}
	b[0] ^= 0x10
	c.write(b[:], off)
}

// decrypt finds the disk by its header and unlocks it.
func (c *chain) decrypt() string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	found, err := disk.Finder{}.ByHeader(ctx, c.result.Header)
	if err != nil || found != c.disk {
		c.t.Fatalf("found %q, want %q: %v", found, c.disk, err)
	}
	r := c.result.Root
	path, err := luks.Open(luks.Params{
		Device: found, Header: c.result.Header, PayloadOffset: r.PayloadOffset, PayloadSize: r.PayloadSize,
		SectorSize: r.SectorSize, Name: cryptName,
	}, c.key.Bytes())
	if err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *chain) params(device string) verity.Params {
	c.t.Helper()
	v := c.result.Root.Verity
	root, rootErr := hex.DecodeString(v.RootHash)
	salt, saltErr := hex.DecodeString(v.Salt)
	if err := errors.Join(rootErr, saltErr); err != nil {
		c.t.Fatal(err)
	}
	return verity.Params{
		Device: device, RootHash: root, Salt: salt, BlockSize: v.BlockSize, DataBlocks: v.DataBlocks,
		HashOffset: v.HashOffset, Name: verityName,
	}
}

func (c *chain) remove(names ...string) {
	c.t.Helper()
	for _, name := range names {
		if err := dm.Remove(name); err != nil {
			c.t.Error(err)
		}
	}
}

// TestKernelChain mounts a root disk as the guest does at boot, and reads it back.
func TestKernelChain(t *testing.T) {
	c := newChain(t)
	device, err := verity.Open(c.params(c.decrypt()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.remove(verityName, cryptName)
	root := t.TempDir()
	if err := mount.Mount(device, root, "erofs", []string{"ro"}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.Unmount(root); err != nil {
			t.Error(err)
		}
	}()
	for name, want := range map[string][]byte{"secret": c.secret, "link": []byte("small"), "etc/hosts": {}} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "small"), []byte("x"), 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err == nil { // the kernel may refuse only the write
		_, err = f.WriteAt(make([]byte, 4096), 0)
		_ = f.Close()
	}
	if err == nil {
		t.Error("the verity device is not read-only")
	}
	if _, err := verity.Open(c.params("/dev/" + filepath.Base(device))); !errors.Is(err, unix.EBUSY) {
		t.Errorf("second device of that name: %v", err)
	}
}

// TestKernelFlippedBit: the host changes one bit of a file's ciphertext. Its reader must get an error, not data.
func TestKernelFlippedBit(t *testing.T) {
	c := newChain(t)
	crypt := c.decrypt()
	plain, err := os.ReadFile(crypt)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(plain, c.secret[:64])
	if at < 0 {
		t.Fatal("the file's content is not in the payload")
	}
	c.remove(cryptName)
	c.flip(c.result.Root.PayloadOffset + int64(at) + 200_000)

	device, err := verity.Open(c.params(c.decrypt()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.remove(verityName, cryptName)
	root := t.TempDir()
	if err := mount.Mount(device, root, "erofs", []string{"ro"}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.Unmount(root); err != nil {
			t.Error(err)
		}
	}()
	f, err := os.Open(filepath.Join(root, "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	if _, err := f.ReadAt(block, 200_000/4096*4096); !errors.Is(err, unix.EIO) {
		t.Errorf("read of the changed block: %v", err)
	}
	if _, err := f.ReadAt(block, 0); err != nil || !bytes.Equal(block, c.secret[:4096]) {
		t.Errorf("read of another block: %v", err)
	}
}

// TestKernelWrongRoot: a disk that is not the one of the boot config is refused when it is opened, and nothing is left.
func TestKernelWrongRoot(t *testing.T) {
	c := newChain(t)
	crypt := c.decrypt()
	p := c.params(crypt)
	p.RootHash[31] ^= 1
	_, err := verity.Open(p)
	if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "root hash is wrong") {
		t.Errorf("wrong root hash: %v", err)
	}
	p = c.params(crypt)
	p.Salt[0] ^= 1
	if _, err := verity.Open(p); !errors.Is(err, unix.EIO) {
		t.Errorf("wrong salt: %v", err)
	}
	p = c.params(crypt)
	p.HashOffset += 1 << 30
	if _, err := verity.Open(p); err == nil {
		t.Error("a tree behind the device's end")
	}
	if there, err := dm.Exists(verityName); there || err != nil {
		t.Errorf("a device is left (%v)", err)
	}
	c.remove(cryptName)

	// Another root disk with the same header cannot be made without the key, but the payload can be swapped.
	c.write(make([]byte, c.result.Root.PayloadSize), c.result.Root.PayloadOffset)
	if _, err := verity.Open(c.params(c.decrypt())); !errors.Is(err, unix.EIO) {
		t.Errorf("zeroed payload: %v", err)
	}
	c.remove(cryptName)
}
