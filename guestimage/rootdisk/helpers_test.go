// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"archive/tar"
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/anatol/devmapper.go"
	"github.com/anatol/luks.go"
	"github.com/containerd/go-dmverity/pkg/verity"
	"github.com/erofs/go-erofs"

	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
)

func testRandom() io.Reader { return rand.NewChaCha8([32]byte{7}) }

func testKey() *keys.Secret {
	return keys.NewSecret(bytes.Repeat([]byte{0, 1, 2, 0xff}, layout.DiskKeySize/4))
}

// testVolumeKey is the volume key that testRandom leads to: Write draws the verity salt first, then the volume key.
func testVolumeKey(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, saltSize+64)
	if _, err := io.ReadFull(testRandom(), b); err != nil {
		t.Fatal(err)
	}
	return b[saltSize:]
}

func write(t *testing.T, source, output string) *Result {
	t.Helper()
	r, err := Write(t.Context(), Options{Source: source, Output: output, Key: testKey(), Rand: testRandom()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// decrypt returns the payload of the disk, after checking with luks.go that the disk key leads to that volume key.
func decrypt(t *testing.T, disk string, r *Result) []byte {
	t.Helper()
	dev, err := luks.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	vol, err := dev.UnsealVolume(0, testKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, testVolumeKey(t))
	if got, err := vol.HMAC(crypto.SHA256, nil); err != nil || !hmac.Equal(got, mac.Sum(nil)) {
		t.Fatalf("volume key is not the one expected (%v)", err)
	}
	plain, err := devmapper.OpenUserspaceVolume(os.O_RDONLY, 0, devmapper.CryptTable{
		Length: vol.StorageSize, BackendDevice: disk, BackendOffset: vol.StorageOffset,
		Encryption: vol.StorageEncryption, Key: testVolumeKey(t), SectorSize: vol.StorageSectorSize,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	payload := make([]byte, r.Root.PayloadSize)
	if _, err := plain.ReadAt(payload, 0); err != nil {
		t.Fatal(err)
	}
	return payload
}

// verify checks a payload against the result's root hash.
func verify(t *testing.T, payload []byte, r *Result) error {
	t.Helper()
	name := filepath.Join(t.TempDir(), "payload")
	if err := os.WriteFile(name, payload, 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := hex.DecodeString(r.Root.Verity.RootHash)
	if err != nil {
		t.Fatal(err)
	}
	salt, err := hex.DecodeString(r.Root.Verity.Salt)
	if err != nil {
		t.Fatal(err)
	}
	p := verity.DefaultParams()
	p.NoSuperblock = true
	p.DataBlockSize, p.HashBlockSize = uint32(r.Root.Verity.BlockSize), uint32(r.Root.Verity.BlockSize)
	p.DataBlocks, p.HashAreaOffset = uint64(r.Root.Verity.DataBlocks), uint64(r.Root.Verity.HashOffset)
	p.Salt, p.SaltSize = salt, uint16(len(salt))
	return verity.Verify(&p, name, name, root)
}

// listing reads an erofs image back: one line a file, with its content.
func listing(t *testing.T, image []byte) []string {
	t.Helper()
	fsys, err := erofs.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		sys, ok := st.Sys().(*erofs.Stat)
		if !ok {
			return errors.New("no erofs.Stat")
		}
		line := fmt.Sprintf("%s %s %d:%d mtime=%d links=%d", sys.Mode, name, sys.UID, sys.GID, sys.Mtime, sys.Nlink)
		switch st.Mode().Type() {
		case 0:
			data, err := fs.ReadFile(fsys, name)
			if err != nil {
				return err
			}
			if len(data) > 32 {
				line += fmt.Sprintf(" %d bytes %x", len(data), sha256.Sum256(data))
			} else {
				line += fmt.Sprintf(" %q", data)
			}
		case fs.ModeSymlink:
			target, err := fs.ReadLink(fsys, name)
			if err != nil {
				return err
			}
			line += " -> " + target
		case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
			line += fmt.Sprintf(" rdev=%#x", sys.Rdev)
		default:
		}
		for attr, value := range sys.Xattrs {
			line += fmt.Sprintf(" %s=%x", attr, value)
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func makeSocket(t *testing.T, name string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

// entry is a tar entry; typeflag 0 is a regular file.
type entry struct {
	name string
	flag byte
	mode int64
	data string // or the link's target
	uid  int
	pax  map[string]string
	dev  [2]int64
}

func writeTar(tb testing.TB, entries ...entry) string {
	tb.Helper()
	name := filepath.Join(tb.TempDir(), "root.tar")
	if err := os.WriteFile(name, tarBytes(tb, entries...), 0o600); err != nil {
		tb.Fatal(err)
	}
	return name
}

func tarBytes(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Typeflag: e.flag, Mode: e.mode, Uid: e.uid, Gid: e.uid, PAXRecords: e.pax,
			Devmajor: e.dev[0], Devminor: e.dev[1],
		}
		if e.flag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.data))
		} else {
			h.Linkname = e.data
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if e.flag == 0 {
			if _, err := io.WriteString(w, e.data); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// sampleTar has one of everything.
func sampleTar(tb testing.TB) string {
	tb.Helper()
	return writeTar(tb,
		entry{name: "./", flag: tar.TypeDir, mode: 0o755},
		entry{name: "./bin/", flag: tar.TypeDir, mode: 0o755},
		entry{name: "./bin/tool", mode: 0o4755, data: strings.Repeat("tool", 5000)},
		entry{name: "./bin/hard", flag: tar.TypeLink, data: "bin/tool"},
		entry{name: "./bin/soft", flag: tar.TypeSymlink, data: "../../etc/tool"},
		entry{name: "./bin/cap", mode: 0o755, data: "x", pax: map[string]string{
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02", "SCHILY.xattr.security.selinux": "build_host_t",
		}},
		entry{name: "./tmp", flag: tar.TypeDir, mode: 0o1777},
		entry{name: "./etc/hosts", mode: 0o600, data: "127.0.0.1 localhost\n", uid: 1000},
		entry{name: "./etc/twice", data: "first", mode: 0o644},
		entry{name: "./etc/twice", data: "second", mode: 0o640},
		entry{name: "./dev/console", flag: tar.TypeChar, mode: 0o600, dev: [2]int64{5, 1}},
		entry{name: "./dev/big", flag: tar.TypeBlock, mode: 0o600, dev: [2]int64{259, 300}},
		entry{name: "./run/pipe", flag: tar.TypeFifo, mode: 0o644},
	)
}
