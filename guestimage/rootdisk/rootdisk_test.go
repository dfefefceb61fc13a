// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"archive/tar"
	"bytes"
	"context"
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
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/anatol/devmapper.go"
	"github.com/anatol/luks.go"
	"github.com/containerd/go-dmverity/pkg/verity"
	"github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"

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

func writeTar(t testing.TB, entries ...entry) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(name, tarBytes(t, entries...), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func tarBytes(t testing.TB, entries ...entry) []byte {
	t.Helper()
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
			t.Fatal(err)
		}
		if e.flag == 0 {
			if _, err := io.WriteString(w, e.data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sampleTar has one of everything.
func sampleTar(t testing.TB) string {
	t.Helper()
	return writeTar(t,
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
	config := layout.BootConfig{Version: layout.BootConfigVersion, Root: r.Root}
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

func TestErrors(t *testing.T) {
	folder := t.TempDir()
	long := strings.Repeat("n", 256)
	socket := t.TempDir()
	makeSocket(t, filepath.Join(socket, "s"))
	notDir := t.TempDir()
	if err := os.Symlink("/elsewhere", filepath.Join(notDir, "proc")); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(plain, bytes.Repeat([]byte("no archive"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	gz := filepath.Join(t.TempDir(), "gz")
	if err := os.WriteFile(gz, []byte("\x1f\x8b\x08 and so on"), 0o600); err != nil {
		t.Fatal(err)
	}
	whole := tarBytes(t, entry{name: "a", data: strings.Repeat("a", 3000)})
	cut := filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(cut, whole[:1024], 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ source, want string }{
		"missing":            {filepath.Join(folder, "none"), "no such file"},
		"device":             {"/dev/null", "want a folder or a tar archive"},
		"unnamed":            {"", "must be named"},
		"no archive":         {plain, "read tar archive"},
		"compressed":         {gz, "compressed with gzip"},
		"cut":                {cut, "unexpected EOF"},
		"empty archive":      {writeTar(t), "tar archive is empty"},
		"socket":             {socket, "s: a socket cannot be part"},
		"mount point":        {notDir, "/proc is a L---------, but the agent needs a directory"},
		"dot dot":            {writeTar(t, entry{name: "../x", data: "x"}), "leads out of the root"},
		"dot dot inside":     {writeTar(t, entry{name: "a/../../x", data: "x"}), "leads out of the root"},
		"absolute":           {writeTar(t, entry{name: "/etc/x", data: "x"}), "name is absolute"},
		"through a link":     {writeTar(t, entry{name: "l", flag: tar.TypeSymlink, data: "/etc"}, entry{name: "l/x", data: "x"}), "l is not a directory"},
		"below a file":       {writeTar(t, entry{name: "f", data: "x"}, entry{name: "f/x", data: "x"}), "f is not a directory"},
		"directory replaced": {writeTar(t, entry{name: "d/x", data: "x"}, entry{name: "d", data: "x"}), "replaces a directory"},
		"hard link early":    {writeTar(t, entry{name: "h", flag: tar.TypeLink, data: "later"}, entry{name: "later", data: "x"}), "no earlier entry"},
		"hard link to dir":   {writeTar(t, entry{name: "d/", flag: tar.TypeDir}, entry{name: "h", flag: tar.TypeLink, data: "d"}), "to the directory"},
		"hard link outside":  {writeTar(t, entry{name: "h", flag: tar.TypeLink, data: "../x"}), "leads out of the root"},
		"long name":          {writeTar(t, entry{name: long, data: "x"}), "longer than 255"},
		"long target":        {writeTar(t, entry{name: "l", flag: tar.TypeSymlink, data: strings.Repeat("x/", 2048)}), "symbolic link"},
		"root is a file":     {writeTar(t, entry{name: ".", data: "x"}), "not a directory"},
		"device number":      {writeTar(t, entry{name: "n", flag: tar.TypeChar, dev: [2]int64{4096, 0}}), "device number"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			output := filepath.Join(dir, "root.img")
			if err := os.WriteFile(output, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Write(t.Context(), Options{Source: tc.source, Output: output, Key: testKey()})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			onlyOld(t, output)
		})
	}
}

// onlyOld checks that the output is untouched and that nothing lies beside it.
func onlyOld(t *testing.T, output string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(output))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
	if data, err := os.ReadFile(output); err != nil || string(data) != "old" {
		t.Errorf("output changed: %q, %v", data, err)
	}
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		o    Options
		want string
	}{
		"no key":     {Options{Source: dir, Output: filepath.Join(dir, "x")}, "disk key has 0 bytes"},
		"short key":  {Options{Source: dir, Output: filepath.Join(dir, "x"), Key: keys.NewSecret(make([]byte, 63))}, "disk key has 63 bytes"},
		"no output":  {Options{Source: dir, Key: testKey()}, "must be named"},
		"no folder":  {Options{Source: dir, Output: filepath.Join(dir, "none/x"), Key: testKey()}, "no such file"},
		"no entropy": {Options{Source: dir, Output: filepath.Join(dir, "x"), Key: testKey(), Rand: bytes.NewReader(nil)}, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Write(t.Context(), tc.o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	output := filepath.Join(t.TempDir(), "root.img")
	if err := os.WriteFile(output, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{sampleTar(t), t.TempDir()} {
		_, err := Write(ctx, Options{Source: source, Output: output, Key: testKey()})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		onlyOld(t, output)
	}
}

// TestShrinkingFile covers a source that changes while it is read: the image is laid out by then.
func TestShrinkingFile(t *testing.T) {
	root := newDir(0o755)
	n := &node{mode: 0o644, size: 10, open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("short")), nil }}
	if err := root.put("f", n); err != nil {
		t.Fatal(err)
	}
	_, err := fs.ReadFile(&treeFS{ctx: t.Context(), root: root}, "f")
	if err == nil || !strings.Contains(err.Error(), "became shorter") {
		t.Errorf("error %v", err)
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

// FuzzTar reads archives that are not archives: an error or an image that reads back, never a panic.
func FuzzTar(f *testing.F) {
	sample, err := os.ReadFile(sampleTar(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	f.Add(tarBytes(f, entry{name: "a/b/c", data: "x"}, entry{name: "a/b/d", flag: tar.TypeLink, data: "a/b/c"}))
	f.Add(tarBytes(f, entry{name: "../x", data: "x"}))
	f.Add(tarBytes(f, entry{name: "x", flag: tar.TypeSymlink, data: strings.Repeat("y", 4000)}))
	f.Add(sample[:700])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		spool, err := scratchFile(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer spool.Close()
		root, err := readTar(t.Context(), bytes.NewReader(data), spool, 1<<20)
		if err != nil || root.addMountPoints() != nil {
			return
		}
		image, err := scratchFile(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		if err := writeImage(t.Context(), image, root); err != nil {
			t.Fatalf("a tree that was accepted makes no image: %v", err)
		}
		fsys, err := erofs.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		if err := compare(fsys, root, "."); err != nil {
			t.Fatal(err)
		}
	})
}

// compare checks that the image holds the tree.
func compare(fsys fs.FS, n *node, name string) error {
	st, err := fs.Lstat(fsys, name)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*erofs.Stat) // its Mode has the set-user-ID bits, st.Mode has not
	if !ok || sys.Mode != n.mode || n.mode.IsRegular() && st.Size() != n.size {
		return fmt.Errorf("%q: %v and size %d, want mode %v and size %d", name, sys, st.Size(), n.mode, n.size)
	}
	for child, c := range n.children {
		if err := compare(fsys, c, strings.TrimPrefix(name+"/"+child, "./")); err != nil {
			return err
		}
	}
	return nil
}
