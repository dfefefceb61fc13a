// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/keys"
)

// genprotimg rearranges an image of ours as the older tool lays it out: no metadata, IPIB (padded to a page) before the
// header.
func genprotimg(t testing.TB, img []byte) []byte {
	t.Helper()
	i := open(t, img)
	out := slices.Clone(img[:i.IPIBOffset])
	clear(out[metadataAddress : metadataAddress+metadataSize])
	at := i.HeaderOffset - PageSize
	block := must[[]byte](t)((&IPIB{HeaderSize: uint64(i.Header.Size()), Components: i.IPIB.Components}).Encode())
	binary.BigEndian.PutUint32(block, PageSize)
	copy(out[at:at+PageSize], append(block, make([]byte, PageSize-len(block))...))
	binary.BigEndian.PutUint64(out[i.ArgsOffset+16:], uint64(at-i.ArgsOffset))
	return out
}

func TestOpenGenprotimg(t *testing.T) {
	t.Parallel()
	img, made := create(t, testOptions(t, testKey(t, 1)))
	i := open(t, genprotimg(t, img))
	if i.Layout != LayoutGenprotimg || i.HeaderOffset != made.HeaderOffset || i.IPIBOffset != made.HeaderOffset-PageSize ||
		!slices.Equal(i.IPIB.Components, made.IPIB.Components) || i.IPIB.Version != 0 {
		t.Errorf("opened %+v", i)
	}
}

func TestOpenHeaderAlone(t *testing.T) {
	t.Parallel()
	host := testKey(t, 1)
	_, made := create(t, testOptions(t, host))
	i := open(t, append(made.Header.Encode(), make([]byte, 100)...))
	if i.Layout != LayoutHeader || i.IPIB != nil || !bytes.Equal(i.Header.Encode(), made.Header.Encode()) {
		t.Errorf("opened %+v", i)
	}
	if _, ok := i.Component(0x15000); ok {
		t.Error("a header alone has a component")
	}
	must[*Confidential](t)(i.Header.Open(headerKey(t, i.Header, host)))
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	img, i := create(t, testOptions(t, testKey(t, 1)))
	ipib := i.IPIBOffset
	put64 := func(at int64, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], v); return b }
	}
	put32 := func(at int64, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
	}
	for name, tc := range map[string]struct {
		change func([]byte) []byte
		want   string
	}{
		"nothing":             {func([]byte) []byte { return nil }, "beyond the end"},
		"zeros":               {func(b []byte) []byte { return make([]byte, len(b)) }, ErrNotImage.Error()},
		"cut before header":   {func(b []byte) []byte { return b[:0x13000] }, "stage3a do not name"},
		"cut in a component":  {func(b []byte) []byte { return b[:0x16000] }, "stage3a do not name"},
		"arguments' size":     {put64(i.ArgsOffset+8, 641), "header of 641 bytes"},
		"cut in the IPIB":     {func(b []byte) []byte { return b[:len(b)-1] }, "length"},
		"metadata version":    {put32(metadataAddress+16, 2), "metadata of version 2"},
		"metadata header":     {put64(metadataAddress+8, 0x15000), "stage3a do not name"},
		"metadata far":        {put64(metadataAddress+8, 1<<63), "stage3a do not name"},
		"metadata IPIB":       {put64(metadataAddress+20, 0x15000), "but at 0x"},
		"header mark":         {put64(i.HeaderOffset, 0), "mark"},
		"header version":      {put32(i.HeaderOffset+8, 0x101), "version 0x101"},
		"IPIB length":         {put32(ipib, 5000), "length 5000"},
		"IPIB short":          {put32(ipib, 100), "length 100"},
		"IPIB version":        {put32(ipib+4, 2), "version 2"},
		"IPIB type":           {put32(ipib+0xc, 0x04000000), "type 4"},
		"no components":       {put32(ipib+0x74, 0), "0 components"},
		"many components":     {put32(ipib+0x74, 1<<31), "2147483648 components"},
		"IPIB block":          {put32(ipib+8, 0x80), "block length"},
		"component unaligned": {put64(ipib+0x88+8, 0x15001), "not whole pages"},
		"component empty":     {put64(ipib+0x88+16, 0), "not whole pages"},
		"component overlaps":  {put64(ipib+0x88+16, 1<<20), "beyond the end"},
		"component back":      {put64(ipib+0x88+24+8, 0x15000), "overlaps"},
		"component far":       {put64(ipib+0x88+3*24+8, 1<<63), "beyond the end"},
		"component endless":   {put64(ipib+0x88+3*24+16, 1<<64-4096), "beyond the end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := tc.change(slices.Clone(img))
			if _, err := OpenImage(bytes.NewReader(data), int64(len(data))); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	t.Parallel()
	_, i := create(t, testOptions(t, testKey(t, 1)))
	good := i.Header.Encode()
	for name, tc := range map[string]struct {
		at    int
		value uint64
		want  string
	}{
		"mark": {0, 1, "mark"}, "version": {8, 0x101_00000280, "version 0x101"}, "size": {8, 0x100_00000281, "size 641"},
		"no slots": {0x20, 0, "0 key slots"}, "slots": {0x20, 96, "96 key slots"}, "many slots": {0x20, 1 << 60, "key slots"},
		"two slots": {0x20, 2, "size 640"}, "area": {0x28, 127, "127 bytes"},
	} {
		data := slices.Clone(good)
		binary.BigEndian.PutUint64(data[tc.at:], tc.value)
		var format *FormatError
		if _, err := ParseHeader(data); !errors.As(err, &format) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.want)
		}
	}
	for n := range good {
		if _, err := ParseHeader(good[:n]); err == nil {
			t.Errorf("%d bytes of a header are taken for one", n)
		}
	}
}

// Each bit of a header is checked: it makes the header unreadable, or the header key no longer opens it.
func TestHeaderAuthenticatesEveryBit(t *testing.T) {
	t.Parallel()
	host := testKey(t, 1)
	_, i := create(t, testOptions(t, host))
	key := headerKey(t, i.Header, host)
	good := i.Header.Encode()
	for bit := range 8 * len(good) {
		data := slices.Clone(good)
		data[bit/8] ^= 1 << (bit % 8)
		h, err := ParseHeader(data)
		if err != nil {
			continue
		}
		if _, err := h.Open(key); !errors.Is(err, ErrHeaderAuthentication) {
			t.Fatalf("bit %d of byte 0x%x: error %v", bit%8, bit/8, err)
		}
	}
}

func TestUnwrapRefuses(t *testing.T) {
	t.Parallel()
	host := testKey(t, 1)
	_, i := create(t, testOptions(t, host))
	slot := i.Header.Slots[0]
	if _, err := slot.Unwrap(testKey(t, 2), i.Header.CustomerKey); !errors.Is(err, ErrKeySlot) {
		t.Errorf("another host key: %v", err)
	}
	changed := slot
	changed.WrappedKey[0] ^= 1
	if _, err := changed.Unwrap(host, i.Header.CustomerKey); !errors.Is(err, ErrKeySlot) {
		t.Errorf("changed slot: %v", err)
	}
	for _, at := range []int{0, 13, 79, 80, 159} { // padding and coordinates
		point := i.Header.CustomerKey
		point[at] ^= 1
		if _, err := slot.Unwrap(host, point); !errors.Is(err, ErrCustomerKey) {
			t.Errorf("byte %d of the customer key changed: %v", at, err)
		}
	}
}

func TestFindBootArgs(t *testing.T) {
	t.Parallel()
	components := []Component{{Address: 0x15000, Size: 0x19000}, {Address: 0x2e000, Size: 0xa000}, {Address: 0x38000, Size: 0x1000}}
	want := BootArgs{
		Kernel: Region{0x15000, 100_000}, Ramdisk: Region{0x2e000, 40_000}, CommandLine: Region{0x38000, 26}, PSWMask: pswMask, PSWAddress: kernelEntry,
	}
	for _, pad := range []int{0, 1, 7, 4095} {
		stage := append(append(make([]byte, 5000), want.encode()...), make([]byte, pad)...)
		if got, ok := FindBootArgs(stage, components); !ok || got != want {
			t.Errorf("with %d bytes of padding: %+v, %v", pad, got, ok)
		}
	}
	for name, change := range map[string]func(*BootArgs){
		"kernel elsewhere": func(a *BootArgs) { a.Kernel.Address += 4096 }, "kernel larger": func(a *BootArgs) { a.Kernel.Size = 0x19001 },
		"no kernel": func(a *BootArgs) { a.Kernel = Region{} }, "mask": func(a *BootArgs) { a.PSWMask = 0 },
	} {
		args := want
		change(&args)
		if got, ok := FindBootArgs(args.encode(), components); ok {
			t.Errorf("%s: found %+v", name, got)
		}
	}
	if _, ok := FindBootArgs(nil, components); ok {
		t.Error("found in nothing")
	}
}

func FuzzOpenImage(f *testing.F) {
	img, i := create(f, testOptions(f, testKey(f, 1)))
	img = img[:i.IPIB.Components[0].Address+PageSize] // small seeds mutate faster
	f.Add(img)
	f.Add(genprotimg(f, mustCreate(f)))
	f.Add(i.Header.Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := OpenImage(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		if got.Header == nil || got.Layout != LayoutHeader && len(got.IPIB.Components) == 0 {
			t.Errorf("an image without header or components: %+v", got)
		}
	})
}

func mustCreate(tb testing.TB) []byte {
	tb.Helper()
	img, _ := create(tb, testOptions(tb, testKey(tb, 1)))
	return img
}

func FuzzParseHeader(f *testing.F) {
	_, i := create(f, testOptions(f, testKey(f, 1), testKey(f, 2)))
	f.Add(i.Header.Encode())
	f.Add(i.Header.Encode()[:headerFixed])
	key := keys.NewSecret(make([]byte, HeaderKeySize))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := ParseHeader(data)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(data, h.Encode()) {
			t.Errorf("%x is encoded to %x", data, h.Encode())
		}
		if _, err := h.Open(key); err == nil {
			t.Error("opened without the key")
		}
	})
}

func FuzzParseIPIB(f *testing.F) {
	img, i := create(f, testOptions(f, testKey(f, 1)))
	f.Add(img[i.IPIBOffset:])
	f.Add(make([]byte, 148))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseIPIB(data)
		if err != nil {
			return
		}
		again, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if q, err := ParseIPIB(append(again, make([]byte, minIPIB)...)); len(again) >= minIPIB && (err != nil || !slices.Equal(q.Components, p.Components)) {
			t.Errorf("%+v became %+v, %v", p, q, err)
		}
	})
}
