// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cloister-cc/cloister/se/xts"
)

var update = flag.Bool("update", false, "rewrite golden files")

// decoded is what a plain reading of the format makes of an image, with nothing of this package but XTS.
type decoded struct {
	kernel, ramdisk, line, stage3b []byte
	cck, imageKey                  []byte
}

// decode reads an image as the format is written down: positions are counted, not taken from the package.
func decode(t testing.TB, img []byte, host *ecdh.PrivateKey) decoded {
	t.Helper()
	u32 := func(at int) int { return int(binary.BigEndian.Uint32(img[at:])) }
	u64 := func(at int) int { return int(binary.BigEndian.Uint64(img[at:])) }
	if u64(0) != 0x0008000180011000 || string(img[0xc000:0xc008]) != "SeImgLnx" || u32(0xc010) != 1 {
		t.Fatalf("short PSW %x, metadata %x", img[:8], img[0xc000:0xc01c])
	}
	hdr, ipib := u64(0xc008), u64(0xc014)
	slots, size := u64(hdr+0x20), u32(hdr+0x0c)
	if string(img[hdr:hdr+8]) != "IBMSecEx" || u32(hdr+8) != 0x100 || size != 0x1a0+80*slots+128+16 || u64(hdr+0x28) != 128 {
		t.Fatalf("header %x", img[hdr:hdr+0x40])
	}
	point := append(append([]byte{4}, img[hdr+0x40+14:hdr+0x90]...), img[hdr+0x90+14:hdr+0xe0]...)

	pub := host.PublicKey().Bytes()
	hash := sha256.Sum256(append(append(make([]byte, 14), pub[1:67]...), append(make([]byte, 14), pub[67:]...)...))
	at := bytes.Index(img[hdr:hdr+size], hash[:])
	if at < 0 {
		t.Fatal("no slot of the host key")
	}
	slot := img[hdr+at : hdr+at+80]
	// The shared secret by plain arithmetic: X of host * customer.
	x, _ := elliptic.P521().ScalarMult(new(big.Int).SetBytes(point[1:67]), new(big.Int).SetBytes(point[67:]), host.Bytes()) //nolint:staticcheck // a second opinion
	z := x.FillBytes(make([]byte, 66))
	kek := sha256.Sum256(append(z, 0, 0, 0, 1))

	header := gcmOpen(t, kek[:], make([]byte, 12), slot[32:], nil)
	enc := hdr + 0x1a0 + 80*slots
	conf := gcmOpen(t, header, img[hdr+0x10:hdr+0x1c], img[enc:enc+144], img[hdr:enc])
	d := decoded{cck: conf[:32], imageKey: conf[32:96]}

	pld, ald, tld := sha512.New(), sha512.New(), sha512.New()
	count, pages := u32(ipib+0x74), 0
	if u32(ipib) != 0x88+24*count || u32(ipib+8) != 0x80+24*count || img[ipib+7] != 1 || img[ipib+0xc] != 5 || img[ipib+0x6f] != 1 ||
		u64(ipib+0x78) != hdr || u64(ipib+0x80) != size || ipib+0x88+24*count != len(img) {
		t.Fatalf("IPIB %x", img[ipib:])
	}
	clear := binary.BigEndian.Uint64(img[hdr+0x38:])&0x10000000 != 0
	parts := make(map[int][]byte)
	next := (hdr + size + 4095) / 4096 * 4096
	for i := range count {
		e := ipib + 0x88 + 24*i
		addr, n := u64(e+8), u64(e+16)
		if addr != next {
			t.Fatalf("component %d at 0x%x instead of 0x%x", i, addr, next)
		}
		next += n
		var plain []byte
		for off := 0; off < n; off += 4096 {
			page := bytes.Clone(img[addr+off : addr+off+4096])
			pld.Write(page)
			ald.Write(binary.BigEndian.AppendUint64(nil, uint64(addr+off)))
			tweak := binary.BigEndian.AppendUint64(bytes.Clone(img[e:e+8]), uint64(off))
			tld.Write(tweak)
			pages++
			if !clear {
				c := must[*xts.Cipher](t)(xts.New(d.imageKey))
				if err := c.Decrypt(page, page, xts.Tweak(tweak)); err != nil {
					t.Fatal(err)
				}
			}
			plain = append(plain, page...)
		}
		parts[int(binary.BigEndian.Uint16(img[e:]))] = plain
	}
	if next != ipib || pages != u64(hdr+0x30) || !bytes.Equal(pld.Sum(nil), img[hdr+0xe0:hdr+0x120]) ||
		!bytes.Equal(ald.Sum(nil), img[hdr+0x120:hdr+0x160]) || !bytes.Equal(tld.Sum(nil), img[hdr+0x160:hdr+0x1a0]) {
		t.Fatal("digests or number of pages differ")
	}
	d.kernel, d.ramdisk, d.line, d.stage3b = parts[40], parts[50], parts[60], parts[70]
	return d
}

func gcmOpen(t testing.TB, key, iv, sealed, aad []byte) []byte {
	t.Helper()
	gcm := must[cipher.AEAD](t)(cipher.NewGCM(must[cipher.Block](t)(aes.NewCipher(key))))
	return must[[]byte](t)(gcm.Open(nil, iv, sealed, aad))
}

func TestCreateByTheFormat(t *testing.T) {
	t.Parallel()
	for _, pcf := range []Flags{DefaultPCF, 0, DefaultPCF | PCFNoComponentEncryption} {
		hosts := []*ecdh.PrivateKey{testKey(t, 1), testKey(t, 2), newHostKey(t)}
		o := testOptions(t, hosts...)
		o.PCF = pcf
		o.CCK, o.ImageKey = secret(3, 32), secret(5, 64)
		img, made := create(t, o)
		for _, h := range hosts {
			d := decode(t, img, h)
			if !bytes.HasPrefix(d.kernel, testKernel(100_000)) || len(d.kernel) != 25*4096 {
				t.Error("kernel differs")
			}
			if want := strings.Repeat("ramdisk ", 5000) + strings.Repeat("\x00", 960); string(d.ramdisk) != want {
				t.Error("ramdisk differs")
			}
			if want := "console=ttysclp0 panic=-1"; !bytes.Equal(d.line, append([]byte(want), make([]byte, 4096-len(want))...)) {
				t.Errorf("command line %q", d.line)
			}
			if !bytes.Equal(d.cck, o.CCK.Bytes()) || !bytes.Equal(d.imageKey, o.ImageKey.Bytes()) {
				t.Error("keys differ")
			}
			args := d.stage3b[0x1100 : 0x1100+64]
			want := make([]byte, 0, 64)
			for _, v := range []uint64{0x15000, 100_000, 0x38000, 26, 0x2e000, 40_000, 0x180000000, 0x10000} {
				want = binary.BigEndian.AppendUint64(want, v)
			}
			if !bytes.Equal(args, want) {
				t.Errorf("arguments of stage3b %x", args)
			}
		}
		got := open(t, img)
		if got.HeaderOffset != made.HeaderOffset || got.IPIBOffset != made.IPIBOffset || got.ArgsOffset != made.ArgsOffset ||
			got.Size != made.Size || got.Layout != LayoutPvimg || !slices.Equal(got.IPIB.Components, made.IPIB.Components) {
			t.Errorf("opened %+v, made %+v", got, made)
		}
	}
}

// The bytes of an image never change by accident: readers of other makers depend on them.
func TestGolden(t *testing.T) {
	t.Parallel()
	img, i := create(t, testOptions(t, testKey(t, 1), testKey(t, 2)))
	whole := sha256.Sum256(img)
	got := fmt.Sprintf("size %d\nsha256 %x\nheader\n%sIPIB\n%s", len(img), whole, hex.Dump(i.Header.Encode()), hex.Dump(img[i.IPIBOffset:]))
	const file = "testdata/image.golden"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the image changed; it is now\n%s", got)
	}
}

func TestRoundTripOfAllFlags(t *testing.T) {
	t.Parallel()
	host := testKey(t, 1)
	pcf := []Flags{PCFAllowDump, PCFNoComponentEncryption, PCFPCKMODEA, PCFPCKMOAES, PCFPCKMOECC, PCFPCKMOHMAC, PCFBackupTarget}
	scf := []Flags{SCFExtensionSecretEnforced, SCFCCKUpdate}
	for n := range 1 << (len(pcf) + len(scf)) {
		o := testOptions(t, host)
		o.Ramdisk, o.PCF = nil, 0
		for i, f := range pcf {
			if n>>i&1 == 1 {
				o.PCF |= f
			}
		}
		for i, f := range scf {
			if n>>(len(pcf)+i)&1 == 1 {
				o.SCF |= f
			}
		}
		img, _ := create(t, o)
		h := open(t, img).Header
		c := must[*Confidential](t)(h.Open(headerKey(t, h, host)))
		if h.PCF != o.PCF || c.SCF != o.SCF || c.PSWMask != pswMask || c.OptionalItems != 0 {
			t.Errorf("flags %v %v became %v %v", o.PCF, o.SCF, h.PCF, c.SCF)
		}
	}
}

func TestCreateParts(t *testing.T) {
	t.Parallel()
	host := testKey(t, 1)
	for name, tc := range map[string]struct {
		change func(*CreateOptions)
		parts  string
	}{
		"all":                    {func(*CreateOptions) {}, "kernel 25 ramdisk 10 cmdline 1 stage3b 2"},
		"no ramdisk":             {func(o *CreateOptions) { o.Ramdisk = nil }, "kernel 25 cmdline 1 stage3b 2"},
		"no command line":        {func(o *CreateOptions) { o.CommandLine = nil }, "kernel 25 ramdisk 10 stage3b 2"},
		"empty ramdisk":          {func(o *CreateOptions) { o.Ramdisk = bytes.NewReader(nil) }, "kernel 25 ramdisk 1 cmdline 1 stage3b 2"},
		"ramdisk of whole pages": {func(o *CreateOptions) { o.Ramdisk = bytes.NewReader(make([]byte, 8192)) }, "kernel 25 ramdisk 2 cmdline 1 stage3b 2"},
		"ramdisk of whole chunks": {
			func(o *CreateOptions) { o.Ramdisk = bytes.NewReader(make([]byte, 2*sealChunk)) }, "kernel 25 ramdisk 256 cmdline 1 stage3b 2",
		},
		"ramdisk in drops": {
			func(o *CreateOptions) { o.Ramdisk = iotest.OneByteReader(bytes.NewReader(make([]byte, 4097))) }, "kernel 25 ramdisk 2 cmdline 1 stage3b 2",
		},
		"one worker":    {func(o *CreateOptions) { o.Workers = 1 }, "kernel 25 ramdisk 10 cmdline 1 stage3b 2"},
		"large stage3a": {func(o *CreateOptions) { o.Bootloader.Stage3a = make([]byte, 0x9000) }, "kernel 25 ramdisk 10 cmdline 1 stage3b 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t, host)
			tc.change(&o)
			img, i := create(t, o)
			decode(t, img, host)
			var got []string
			for _, c := range open(t, img).IPIB.Components {
				got = append(got, fmt.Sprint(c.Kind(), " ", c.Pages()))
			}
			if s := strings.Join(got, " "); s != tc.parts {
				t.Errorf("components %s, want %s", s, tc.parts)
			}
			if i.Size != int64(len(img)) {
				t.Errorf("size %d of %d", i.Size, len(img))
			}
		})
	}
}

func TestCreateWithTheMostHostKeys(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	var last *ecdh.PrivateKey
	for range MaxKeySlots {
		last = newHostKey(t)
		o.HostKeys = append(o.HostKeys, last.PublicKey())
	}
	if MaxKeySlots != 95 {
		t.Errorf("%d key slots", MaxKeySlots)
	}
	img, i := create(t, o)
	if i.Header.Size() > MaxHeaderSize {
		t.Errorf("header of %d bytes", i.Header.Size())
	}
	decode(t, img, last)
	o = testOptions(t)
	for range MaxKeySlots + 1 {
		o.HostKeys = append(o.HostKeys, last.PublicKey())
	}
	if _, err := Create(t.Context(), &memory{}, o); err == nil || !strings.Contains(err.Error(), "96 host keys") {
		t.Errorf("error %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	host := testKey(t, 1)
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		change func(*CreateOptions)
		want   string
	}{
		"no kernel":      {func(o *CreateOptions) { o.Kernel = nil }, "no kernel"},
		"no bootloader":  {func(o *CreateOptions) { o.Bootloader = nil }, "no bootloader"},
		"ELF":            {func(o *CreateOptions) { o.Kernel = strings.NewReader("\x7fELF" + strings.Repeat("x", 1<<17)) }, "ELF file"},
		"short kernel":   {func(o *CreateOptions) { o.Kernel = strings.NewReader("x") }, ErrKernel.Error()},
		"no kernel mark": {func(o *CreateOptions) { o.Kernel = bytes.NewReader(make([]byte, 1<<17)) }, "S390EP"},
		"broken kernel":  {func(o *CreateOptions) { o.Kernel = iotest.ErrReader(broken) }, "read kernel: broken"},
		"broken ramdisk": {func(o *CreateOptions) {
			o.Ramdisk = io.MultiReader(bytes.NewReader(make([]byte, 3*sealChunk)), iotest.ErrReader(broken))
		}, "ramdisk: read: broken"},
		"long line":        {func(o *CreateOptions) { o.CommandLine = make([]byte, 5000) }, "has 5000 bytes with its closing zero, the kernel takes 4096"},
		"zero in line":     {func(o *CreateOptions) { o.CommandLine = []byte("a\x00b") }, "zero byte"},
		"no host key":      {func(o *CreateOptions) { o.HostKeys = nil }, "0 host keys"},
		"host key twice":   {func(o *CreateOptions) { o.HostKeys = append(o.HostKeys, o.HostKeys[0]) }, "host key 2 is given twice"},
		"wrong curve":      {func(o *CreateOptions) { o.HostKeys = append(o.HostKeys, p256(t)) }, "host key 2: not a public key of the curve P-521"},
		"header key":       {func(o *CreateOptions) { o.HeaderKey = secret(1, 31) }, "header key of 31 bytes"},
		"image key":        {func(o *CreateOptions) { o.ImageKey = secret(1, 32) }, "image key of 32 bytes"},
		"image key halves": {func(o *CreateOptions) { o.ImageKey = secret(0, 64) }, "image key"},
		"CCK":              {func(o *CreateOptions) { o.CCK = secret(1, 64) }, "CCK of 64 bytes"},
		"stage3a":          {func(o *CreateOptions) { o.Bootloader.Stage3a = nil }, "stage3a has 0 bytes"},
		"stage3b":          {func(o *CreateOptions) { o.Bootloader.Stage3b = make([]byte, 2<<20) }, "stage3b has 2097152 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t, host)
			tc.change(&o)
			if _, err := Create(t.Context(), &memory{}, o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	o := testOptions(t, host)
	o.Kernel, o.SkipComponentCheck = strings.NewReader("anything"), true
	img, _ := create(t, o)
	decode(t, img, host)
}

func p256(t testing.TB) *ecdh.PublicKey {
	t.Helper()
	return must[*ecdh.PrivateKey](t)(ecdh.P256().NewPrivateKey(bytes.Repeat([]byte{1}, 32))).PublicKey()
}

// failing writes until a limit.
type failing struct{ left int }

func (f *failing) WriteAt(p []byte, _ int64) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("disk full")
	}
	return len(p), nil
}

func TestCreateReportsWriteErrors(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{0, 120_000, 150_000, 1 << 19} {
		o := testOptions(t, testKey(t, 1))
		o.Ramdisk = bytes.NewReader(make([]byte, 8*sealChunk))
		if _, err := Create(t.Context(), &failing{limit}, o); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("after %d bytes: error %v", limit, err)
		}
	}
}
