// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package luks

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/guestimage/luks2"
)

const payloadSize = 1 << 20

func testPassphrase() []byte { return bytes.Repeat([]byte{0, 0xff, '\n', 'k'}, 16) }

func testPayload() []byte {
	b := make([]byte, payloadSize)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{2}), b)
	return b
}

// testDisk writes a disk as the build host does, to a file, and returns how the guest opens it.
func testDisk(t *testing.T) Params {
	t.Helper()
	v, err := luks2.New(payloadSize, testPassphrase(), rand.NewChaCha8([32]byte{1}))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(v.WriteDisk(t.Context(), f, bytes.NewReader(testPayload())), f.Close()); err != nil {
		t.Fatal(err)
	}
	return Params{
		Device: f.Name(), Header: v.Header(), PayloadOffset: luks2.PayloadOffset, PayloadSize: payloadSize,
		SectorSize: luks2.SectorSize, Name: "cloister-luks-test",
	}
}

func TestUnseal(t *testing.T) {
	p := testDisk(t)
	pass := testPassphrase()
	v, err := p.unseal(pass)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Flags) != 2 || v.Flags[0] != "no-read-workqueue" || v.Flags[1] != "no-write-workqueue" {
		t.Errorf("flags %v", v.Flags)
	}
	if !bytes.Equal(pass, testPassphrase()) {
		t.Error("the caller's passphrase was changed")
	}
}

// TestDiskHeaderIsNotRead: whatever the host writes over the header of the disk, the pinned one is used.
func TestDiskHeaderIsNotRead(t *testing.T) {
	p := testDisk(t)
	f, err := os.OpenFile(p.Device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, luks2.HeaderSize), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.unseal(testPassphrase()); err != nil {
		t.Error(err)
	}
}

// rewrite changes the pinned header's JSON and makes the checksum right again, as an attacker who could write the header
// would.
func rewrite(t *testing.T, header []byte, change func(keyslots, segment, config map[string]any)) []byte {
	t.Helper()
	const size, text, checksum = 16 << 10, 4096, 0x1c0
	h := bytes.Clone(header)
	var meta map[string]any
	if err := json.Unmarshal(bytes.TrimRight(h[text:size], "\x00"), &meta); err != nil {
		t.Fatal(err)
	}
	at := func(m map[string]any, key string) map[string]any {
		v, ok := m[key].(map[string]any)
		if !ok {
			t.Fatalf("no %s in the header", key)
		}
		return v
	}
	change(at(meta, "keyslots"), at(at(meta, "segments"), "0"), at(meta, "config"))
	data, err := json.Marshal(meta)
	if err != nil {
		t.Fatal(err)
	}
	clear(h[text:size])
	copy(h[text:size], data)
	clear(h[checksum : checksum+64])
	sum := sha256.Sum256(h[:size])
	copy(h[checksum:], sum[:])
	return h
}

// TestUnsealErrors: a build that is not consistent, or a disk that does not fit, never becomes a device.
func TestUnsealErrors(t *testing.T) {
	disk := testDisk(t)
	cut := filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(cut, make([]byte, disk.PayloadOffset+disk.PayloadSize-1), 0o600); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(disk.Header)
	flipped[5000] ^= 1
	pass := testPassphrase()
	for name, tc := range map[string]struct {
		change     func(p *Params)
		passphrase []byte
		want       string
	}{
		"wrong passphrase": {func(*Params) {}, []byte("wrong"), ErrPassphrase.Error()},
		"no passphrase":    {func(*Params) {}, nil, ErrPassphrase.Error()},
		"no header":        {func(p *Params) { p.Header = nil }, pass, "open pinned header"},
		"no LUKS":          {func(p *Params) { p.Header = make([]byte, 1<<20) }, pass, "open pinned header"},
		"cut header":       {func(p *Params) { p.Header = p.Header[:40<<10] }, pass, "recover volume key"},
		"flipped bit":      {func(p *Params) { p.Header = flipped }, pass, "checksum"},
		"payload offset":   {func(p *Params) { p.PayloadOffset -= 4096 }, pass, "payload offset is 524288, want 520192"},
		"payload size":     {func(p *Params) { p.PayloadSize -= 4096 }, pass, "payload size is 1048576, want 1044480"},
		"sector size":      {func(p *Params) { p.SectorSize = 512 }, pass, "sector size is 4096, want 512"},
		"negative":         {func(p *Params) { p.PayloadOffset = -1 }, pass, "payload at -1"},
		"overflow":         {func(p *Params) { p.PayloadSize = 1<<63 - 1 }, pass, "payload at"},
		"no disk":          {func(p *Params) { p.Device += "-none" }, pass, "no such file"},
		"cut disk":         {func(p *Params) { p.Device = cut }, pass, "it was cut"},
	} {
		t.Run(name, func(t *testing.T) {
			p := disk
			tc.change(&p)
			if _, err := p.unseal(tc.passphrase); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

// TestHeaderContent: each of these headers opens with the right key in luks.go, and would map something else than what
// the build host wrote, or with other flags.
func TestHeaderContent(t *testing.T) {
	disk := testDisk(t)
	type object = map[string]any
	for name, tc := range map[string]struct {
		change func(keyslots, segment, config object)
		want   string
	}{
		"unchanged":        {func(_, _, _ object) {}, ""},
		"null cipher":      {func(_, s, _ object) { s["encryption"] = "cipher_null-ecb" }, "cipher is cipher_null-ecb, want aes-xts-plain64"},
		"table injection":  {func(_, s, _ object) { s["encryption"] = "cipher_null-ecb - 0 /dev/vda 32768 0" }, "cipher is"},
		"IV tweak":         {func(_, s, _ object) { s["iv_tweak"] = "8" }, "IV tweak is 8, want 0"},
		"segment shift":    {func(_, s, _ object) { s["offset"] = "528384" }, "payload offset is 528384"},
		"dynamic size":     {func(_, s, _ object) { s["size"] = "dynamic" }, ""},
		"small sectors":    {func(_, s, _ object) { s["sector_size"] = 512 }, "sector size is 512"},
		"linear segment":   {func(_, s, _ object) { s["type"] = "linear" }, "recover volume key"},
		"persistent flags": {func(_, _, c object) { c["flags"] = []string{"allow-discards", "x"} }, ""},
		"two keyslots":     {func(k, _, _ object) { k["1"] = k["0"] }, "2 keyslots, want 1"},
		"no keyslot":       {func(k, _, _ object) { delete(k, "0") }, "0 keyslots, want 1"},
	} {
		t.Run(name, func(t *testing.T) {
			p := disk
			p.Header = rewrite(t, p.Header, tc.change)
			v, err := p.unseal(testPassphrase())
			switch {
			case tc.want != "":
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want %q", err, tc.want)
				}
			case err != nil:
				t.Error(err)
			case strings.Join(v.Flags, " ") != "no-read-workqueue no-write-workqueue":
				t.Errorf("flags %v", v.Flags)
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	for name, tc := range map[string]struct{ device, name, want string }{
		"name":   {"/dev/vda", "a b", "device name"},
		"device": {"/dev/vda 0", "x", "not a plain absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(Params{Device: tc.device, Name: tc.name}, []byte("x"))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestSealedFile(t *testing.T) {
	f, err := sealedFile("test", []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, change := range map[string]func() error{
		"write":  func() error { _, err := f.WriteAt([]byte("x"), 0); return err },
		"grow":   func() error { return f.Truncate(100) },
		"shrink": func() error { return f.Truncate(0) },
		"unseal": func() error { _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, 0); return err },
	} {
		if err := change(); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v", name, err)
		}
	}
	got := make([]byte, 4)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "data" {
		t.Errorf("holds %q, %v", got, err)
	}
}
