// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"

	"github.com/cloister-cc/cloister/initramfs/layout"
)

func TestTar(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "root.img")
	r := write(t, sampleTar(t), disk)
	payload := decrypt(t, disk, r)
	tool := fmt.Sprintf("20000 bytes %x", sha256.Sum256([]byte(strings.Repeat("tool", 5000))))
	want := []string{
		"drwxr-xr-x . 0:0 mtime=0 links=10",
		"drwxr-xr-x bin 0:0 mtime=0 links=2",
		`-rwxr-xr-x bin/cap 0:0 mtime=0 links=1 "x" security.capability=01000002`,
		"urwxr-xr-x bin/hard 0:0 mtime=0 links=1 " + tool,
		"Lrwxrwxrwx bin/soft 0:0 mtime=0 links=1 -> ../../etc/tool",
		"urwxr-xr-x bin/tool 0:0 mtime=0 links=1 " + tool,
		"drwxr-xr-x dev 0:0 mtime=0 links=2",
		"Drw------- dev/big 0:0 mtime=0 links=1 rdev=0x11032c",
		"Dcrw------- dev/console 0:0 mtime=0 links=1 rdev=0x501",
		"drwxr-xr-x etc 0:0 mtime=0 links=2",
		`-rw-r--r-- etc/hostname 0:0 mtime=0 links=1 ""`,
		`-rw------- etc/hosts 1000:1000 mtime=0 links=1 "127.0.0.1 localhost\n"`,
		`-rw-r--r-- etc/resolv.conf 0:0 mtime=0 links=1 ""`,
		`-rw-r----- etc/twice 0:0 mtime=0 links=1 "second"`,
		"drwxr-xr-x proc 0:0 mtime=0 links=2",
		"drwxr-xr-x run 0:0 mtime=0 links=2",
		"prw-r--r-- run/pipe 0:0 mtime=0 links=1",
		"drwxr-xr-x sys 0:0 mtime=0 links=2",
		"dtrwxrwxrwx tmp 0:0 mtime=0 links=2",
		"drwxr-xr-x var 0:0 mtime=0 links=2",
	}
	if diff := cmp.Diff(want, listing(t, payload[:r.DataSize])); diff != "" {
		t.Errorf("image differs (-want +got):\n%s", diff)
	}
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	big := make([]byte, 3<<20+123)
	_, _ = io.ReadFull(testRandom(), big)
	files := map[string][]byte{"usr/lib/big": big, "usr/bin/a": []byte("a"), "empty": nil}
	for i := range 300 { // a directory of several blocks
		files[fmt.Sprintf("many/file-with-a-long-name-%03d", i)] = bytes.Repeat([]byte{byte(i)}, i*37)
	}
	for name, data := range files {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/outside", filepath.Join(dir, "usr/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "usr/lib/big"), filepath.Join(dir, "usr/lib/same")); err != nil {
		t.Fatal(err)
	}
	files["usr/lib/same"] = big

	disk := filepath.Join(t.TempDir(), "root.img")
	r := write(t, dir, disk)
	image := decrypt(t, disk, r)[:r.DataSize]
	fsys, err := erofs.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := fs.ReadFile(fsys, name)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
	for _, line := range listing(t, image) {
		if !strings.Contains(line, " 0:0 mtime=0 ") { // the test's user owns the source, and is root in the image
			t.Error(line)
		}
	}
	fsck(t, image)
}

// fsck has the reference implementation check the image.
func fsck(t *testing.T, image []byte) {
	t.Helper()
	tool, err := exec.LookPath("fsck.erofs")
	if err != nil {
		if os.Getenv("REQUIRE_QEMU") == "1" && os.Getenv("CLOISTER_GUEST") != "1" {
			t.Fatal("fsck.erofs is not installed (Debian: erofs-utils), but REQUIRE_QEMU=1")
		}
		t.Log("fsck.erofs is not installed (Debian: erofs-utils): image is read back by go-erofs only")
		return
	}
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), tool, "--extract", name).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

func TestResult(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "root.img")
	r := write(t, sampleTar(t), disk)
	config := layout.BootConfig{Version: layout.BootConfigVersion, CommandLine: "quiet", Root: r.Root}
	if err := config.Validate(); err != nil {
		t.Errorf("result is no valid boot config: %v", err)
	}
	data, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(r.Header)) != r.Root.HeaderSize || !bytes.HasPrefix(data, r.Header) {
		t.Error("the disk does not start with the header")
	}
	if want := r.Root.PayloadOffset + r.Root.PayloadSize; int64(len(data)) != want {
		t.Errorf("disk has %d bytes, want %d", len(data), want)
	}
	if bytes.Contains(data, []byte("localhost")) || bytes.Contains(data, []byte("tooltool")) {
		t.Error("plaintext on the disk")
	}
	again := filepath.Join(t.TempDir(), "again.img")
	write(t, sampleTar(t), again)
	if data2, err := os.ReadFile(again); err != nil || !bytes.Equal(data, data2) {
		t.Errorf("the same input made another disk (%v)", err)
	}
	other, err := Write(t.Context(), Options{Source: sampleTar(t), Output: again, Key: testKey()})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(other.Header, r.Header) || other.Root.Verity.RootHash == r.Root.Verity.RootHash {
		t.Error("the system's random source makes the disk of the test's")
	}
}

// TestVeritysetup checks the tree with the reference implementation.
func TestVeritysetup(t *testing.T) {
	tool, err := exec.LookPath("veritysetup")
	if err != nil {
		if os.Getenv("REQUIRE_QEMU") == "1" {
			t.Fatal("veritysetup is not installed, but REQUIRE_QEMU=1")
		}
		t.Skip("veritysetup is not installed (Debian: cryptsetup-bin)")
	}
	disk := filepath.Join(t.TempDir(), "root.img")
	r := write(t, sampleTar(t), disk)
	name := filepath.Join(t.TempDir(), "payload")
	if err := os.WriteFile(name, decrypt(t, disk, r), 0o600); err != nil {
		t.Fatal(err)
	}
	v := r.Root.Verity
	out, err := exec.CommandContext(t.Context(), tool, "verify", "--no-superblock", "--format=1", "--hash=sha256",
		"--data-block-size=4096", "--hash-block-size=4096", fmt.Sprintf("--data-blocks=%d", v.DataBlocks),
		fmt.Sprintf("--hash-offset=%d", v.HashOffset), "--salt="+v.Salt, name, name, v.RootHash).CombinedOutput()
	if err != nil {
		t.Errorf("veritysetup verify: %v\n%s", err, out)
	}
}

// TestFlippedBit changes one bit of the disk's payload at a time. XTS turns it into 16 random bytes; without verity the
// guest would take them. Every position must be covered by the root hash.
func TestFlippedBit(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "root.img")
	r := write(t, sampleTar(t), disk)
	if err := verify(t, decrypt(t, disk, r), r); err != nil {
		t.Fatalf("untouched payload: %v", err)
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flip := func(off int64, bit int) {
		var b [1]byte
		if _, err := f.ReadAt(b[:], off); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1 << bit
		if _, err := f.WriteAt(b[:], off); err != nil {
			t.Fatal(err)
		}
	}
	step := r.Root.PayloadSize/64 + 1
	for off := int64(0); off < r.Root.PayloadSize; off += step {
		at, bit := r.Root.PayloadOffset+off, int(off%8)
		flip(at, bit)
		if err := verify(t, decrypt(t, disk, r), r); err == nil {
			t.Errorf("bit %d of byte %d is not covered", bit, at)
		}
		flip(at, bit)
	}
	last := r.Root.PayloadOffset + r.Root.PayloadSize - 1
	flip(last, 7)
	if err := verify(t, decrypt(t, disk, r), r); err == nil {
		t.Error("the last bit is not covered")
	}
}

func BenchmarkWrite(b *testing.B) {
	dir := b.TempDir()
	const size = 64 << 20
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	output := filepath.Join(b.TempDir(), "root.img")
	b.SetBytes(size)
	for b.Loop() {
		if _, err := Write(b.Context(), Options{Source: dir, Output: output, Key: testKey()}); err != nil {
			b.Fatal(err)
		}
	}
}
