// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package luks2

import (
	"bytes"
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/anatol/devmapper.go"
	"github.com/anatol/luks.go"
)

// testRandom is a reproducible source; tests must never use it for anything that is kept.
func testRandom(seed byte) io.Reader {
	return rand.NewChaCha8([32]byte{seed})
}

func testPassphrase() []byte {
	return bytes.Repeat([]byte{0x00, 0xff, 0x0a, 'x'}, 16) // NUL and newline are ordinary bytes of a key
}

// writeDisk writes a disk with the given payload and returns its path and volume.
func writeDisk(t *testing.T, payload []byte) (string, *Volume) {
	t.Helper()
	v, err := New(int64(len(payload)), testPassphrase(), testRandom(1))
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.WriteDisk(t.Context(), f, bytes.NewReader(payload)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return name, v
}

func testPayload(size int) []byte {
	b := make([]byte, size)
	_, _ = io.ReadFull(testRandom(2), b)
	return b
}

func TestGolden(t *testing.T) {
	name, v := writeDisk(t, testPayload(3*SectorSize))
	disk, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(disk) != HeaderSize+3*SectorSize {
		t.Errorf("disk has %d bytes", len(disk))
	}
	if !bytes.Equal(disk[:HeaderSize], v.Header()) {
		t.Error("the disk does not start with Header()")
	}
	const want = "756182a2ef5268e7c2edbb6ecc17bffd92a90430c7aab3d063dc5ca211205372"
	if sum := sha256.Sum256(disk); hex.EncodeToString(sum[:]) != want {
		t.Errorf("disk's sha256 is %x, want %s: the format changed", sum, want)
	}
}

// TestLuksGo opens the disk with the library that the guest uses, and decrypts it.
func TestLuksGo(t *testing.T) {
	payload := testPayload(2*chunkSize + 5*SectorSize)
	name, v := writeDisk(t, payload)
	dev, err := luks.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if dev.Version() != 2 || len(dev.Slots()) != 1 || dev.UUID() != v.UUID() || len(dev.FlagsGet()) != 0 {
		t.Errorf("version %d, slots %v, uuid %s, flags %v", dev.Version(), dev.Slots(), dev.UUID(), dev.FlagsGet())
	}
	if _, err := dev.UnsealVolume(0, []byte("wrong")); !errors.Is(err, luks.ErrPassphraseDoesNotMatch) {
		t.Errorf("wrong passphrase: %v", err)
	}
	vol, err := dev.UnsealVolume(0, testPassphrase())
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, v.key.Bytes())
	mac.Write([]byte("same key"))
	if got, err := vol.HMAC(crypto.SHA256, []byte("same key")); err != nil || !hmac.Equal(got, mac.Sum(nil)) {
		t.Errorf("luks.go found another volume key (%v)", err)
	}
	if vol.StorageEncryption != Cipher || vol.StorageSectorSize != SectorSize || vol.StorageOffset != PayloadOffset ||
		vol.StorageSize != uint64(len(payload)) || vol.StorageIvTweak != 0 {
		t.Errorf("volume %+v", vol)
	}
	plain, err := devmapper.OpenUserspaceVolume(os.O_RDONLY, 0, devmapper.CryptTable{
		Length: vol.StorageSize, BackendDevice: name, BackendOffset: vol.StorageOffset,
		Encryption: vol.StorageEncryption, Key: v.key.Bytes(), SectorSize: vol.StorageSectorSize,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	got := make([]byte, len(payload))
	if _, err := plain.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, payload) {
		t.Error("decrypted payload differs")
	}
}

// cryptsetup runs the reference implementation, which has to be installed where the whole test suite runs.
func cryptsetup(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("cryptsetup")
	if err != nil {
		if os.Getenv("REQUIRE_QEMU") == "1" {
			t.Fatal("cryptsetup is not installed, but REQUIRE_QEMU=1")
		}
		t.Skip("cryptsetup is not installed (Debian: cryptsetup-bin)")
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	return string(out), err
}

func TestCryptsetup(t *testing.T) {
	payload := testPayload(4 << 20)
	name, v := writeDisk(t, payload)
	dump, err := cryptsetup(t, "luksDump", name)
	if err != nil {
		t.Fatalf("luksDump: %v\n%s", err, dump)
	}
	for _, want := range []string{
		"Version:       \t2", "UUID:          \t" + v.UUID(), "offset: 524288 [bytes]", "length: 4194304 [bytes]",
		"cipher: aes-xts-plain64", "sector: 4096 [bytes]", "PBKDF:      pbkdf2", "Iterations: 1000", "AF stripes: 4000",
	} {
		if !strings.Contains(dump, want) {
			t.Errorf("luksDump does not say %q:\n%s", want, dump)
		}
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, testPassphrase(), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := cryptsetup(t, "open", "--test-passphrase", "--key-file", key, name); err != nil {
		t.Errorf("open --test-passphrase: %v\n%s", err, out)
	}
	if err := os.WriteFile(key, testPassphrase()[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cryptsetup(t, "open", "--test-passphrase", "--key-file", key, name); err == nil {
		t.Error("cryptsetup accepts a wrong key")
	}
}

// TestCryptsetupSecondary checks the copy that cryptsetup falls back to: it must hold the same metadata.
func TestCryptsetupSecondary(t *testing.T) {
	name, _ := writeDisk(t, testPayload(SectorSize))
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, metadataSize), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, testPassphrase(), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := cryptsetup(t, "open", "--test-passphrase", "--key-file", key, name); err != nil {
		t.Errorf("open with the secondary header only: %v\n%s", err, out)
	}
}

// failingWriter takes the header and fails with err, if any, at the payload.
type failingWriter struct{ err error }

func (w failingWriter) WriteAt(b []byte, off int64) (int, error) {
	if off >= PayloadOffset && w.err != nil {
		return 0, w.err
	}
	return len(b), nil
}

func TestNewErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		size       int64
		passphrase []byte
		random     io.Reader
		want       string
	}{
		"no payload":          {0, testPassphrase(), testRandom(1), "payload size 0"},
		"negative payload":    {-SectorSize, testPassphrase(), testRandom(1), "payload size"},
		"half a sector":       {SectorSize + 512, testPassphrase(), testRandom(1), "whole sectors"},
		"too large":           {maxPayload + SectorSize, testPassphrase(), testRandom(1), "16 TiB"},
		"no passphrase":       {SectorSize, nil, testRandom(1), "passphrase has 0 bytes"},
		"long passphrase":     {SectorSize, make([]byte, 513), testRandom(1), "passphrase has 513 bytes"},
		"no random bytes":     {SectorSize, testPassphrase(), bytes.NewReader(nil), "make volume key"},
		"few random bytes":    {SectorSize, testPassphrase(), bytes.NewReader(make([]byte, 100)), "make salts"},
		"random bytes end":    {SectorSize, testPassphrase(), bytes.NewReader(make([]byte, 200_000)), "make keyslot stripes"},
		"random bytes enough": {SectorSize, testPassphrase(), testRandom(3), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(tc.size, tc.passphrase, tc.random)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestWriteDiskErrors(t *testing.T) {
	newVolume := func(t *testing.T) *Volume {
		t.Helper()
		v, err := New(3*chunkSize, testPassphrase(), testRandom(1))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	discard := failingWriter{}
	t.Run("short payload", func(t *testing.T) {
		err := newVolume(t).WriteDisk(t.Context(), discard, bytes.NewReader(make([]byte, 3*chunkSize-1)))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no space", func(t *testing.T) {
		full := errors.New("disk is full")
		err := newVolume(t).WriteDisk(t.Context(), failingWriter{full}, bytes.NewReader(make([]byte, 3*chunkSize)))
		if !errors.Is(err, full) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := newVolume(t).WriteDisk(ctx, discard, bytes.NewReader(make([]byte, 3*chunkSize)))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("wiped", func(t *testing.T) {
		v := newVolume(t)
		v.Wipe()
		if err := v.WriteDisk(t.Context(), discard, bytes.NewReader(nil)); err == nil {
			t.Error("a wiped volume writes")
		}
	})
}

// FuzzNew checks that whatever New accepts, luks.go opens with the same figures and key.
func FuzzNew(f *testing.F) {
	f.Add(int64(SectorSize), []byte("x"), byte(0))
	f.Add(int64(maxPayload), make([]byte, 512), byte(1))
	f.Add(int64(-1), []byte{0}, byte(2))
	f.Fuzz(func(t *testing.T, size int64, passphrase []byte, seed byte) {
		v, err := New(size, passphrase, testRandom(seed))
		if err != nil {
			return
		}
		name := filepath.Join(t.TempDir(), "header")
		if err := os.WriteFile(name, v.Header(), 0o600); err != nil {
			t.Fatal(err)
		}
		dev, err := luks.OpenWithHeader("/dev/null", name)
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		vol, err := dev.UnsealVolume(0, passphrase)
		if err != nil {
			t.Fatal(err)
		}
		if vol.StorageSize != uint64(size) || vol.StorageOffset != PayloadOffset {
			t.Errorf("volume %+v", vol)
		}
	})
}

// zeros is an endless payload that costs nothing to read.
type zeros struct{}

func (zeros) ReadAt(b []byte, _ int64) (int, error) { return len(b), nil }

func BenchmarkWriteDisk(b *testing.B) {
	const size = 64 << 20
	v, err := New(size, testPassphrase(), testRandom(1))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		if err := v.WriteDisk(b.Context(), failingWriter{}, zeros{}); err != nil {
			b.Fatal(err)
		}
	}
}
