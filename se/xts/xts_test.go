// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package xts

import (
	"bytes"
	"crypto/aes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	reference "golang.org/x/crypto/xts"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Vector 10 of IEEE 1619-2018, annex B: XTS-AES-256, data unit 0xff of 512 bytes, 0x00 to 0xff twice.
func TestKnownAnswer(t *testing.T) {
	t.Parallel()
	key := unhex(t, `2718281828459045235360287471352662497757247093699959574966967627
		3141592653589793238462643383279502884197169399375105820974944592`)
	plain := make([]byte, 512)
	for i := range plain {
		plain[i] = byte(i)
	}
	want := unhex(t, `1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b
		5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd
		5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0
		c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca
		2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0
		b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f
		93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec
		583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6ba02469a020a
		84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1
		505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae
		9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29
		a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac
		6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f
		645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed4385
		1ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa
		773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151`)
	c, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(plain))
	if err := c.Encrypt(got, plain, Tweak{0xff}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("ciphertext %x", got)
	}
	if err := c.Decrypt(got, got, Tweak{0xff}); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("decrypted in place to %x, %v", got, err)
	}
}

// Where both can number a data unit, the well-known package and this one agree.
func TestAgreesWithReference(t *testing.T) {
	t.Parallel()
	key := make([]byte, KeySize)
	for i := range key {
		key[i] = byte(i * 7)
	}
	ours, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := reference.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte("0123456789abcdef"), 256)
	for _, sector := range []uint64{0, 1, 1 << 31, 1<<63 + 12345, 1<<64 - 1} {
		var tweak Tweak
		binary.LittleEndian.PutUint64(tweak[:], sector)
		got, want := make([]byte, len(page)), make([]byte, len(page))
		if err := ours.Encrypt(got, page, tweak); err != nil {
			t.Fatal(err)
		}
		theirs.Encrypt(want, page, sector)
		if !bytes.Equal(got, want) {
			t.Errorf("sector %d differs", sector)
		}
	}
}

// Every bit of the tweak matters, those beyond 64 as well.
func TestTweakIsUsedWhole(t *testing.T) {
	t.Parallel()
	c, err := New(append(bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)...))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]int)
	for bit := range 8 * TweakSize {
		var tweak Tweak
		tweak[bit/8] = 1 << (bit % 8)
		out := make([]byte, 32)
		if err := c.Encrypt(out, out, tweak); err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[string(out)]; ok {
			t.Errorf("bits %d and %d encrypt alike", other, bit)
		}
		seen[string(out)] = bit
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	for name, key := range map[string][]byte{
		"none": nil, "short": make([]byte, 63), "long": make([]byte, 65), "equal halves": make([]byte, 64),
	} {
		if _, err := New(key); !errors.Is(err, ErrKey) {
			t.Errorf("key %s: error %v", name, err)
		}
	}
	c, err := New(append(make([]byte, 32), bytes.Repeat([]byte{1}, 32)...))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range [][2]int{{15, 15}, {16, 32}, {32, 16}} {
		if c.Encrypt(make([]byte, n[0]), make([]byte, n[1]), Tweak{}) == nil || c.Decrypt(make([]byte, n[0]), make([]byte, n[1]), Tweak{}) == nil {
			t.Errorf("%d bytes into %d are accepted", n[1], n[0])
		}
	}
}

func BenchmarkEncrypt(b *testing.B) {
	c, err := New(append(make([]byte, 32), bytes.Repeat([]byte{1}, 32)...))
	if err != nil {
		b.Fatal(err)
	}
	page := make([]byte, 4096)
	b.SetBytes(int64(len(page)))
	for b.Loop() {
		if err := c.Encrypt(page, page, Tweak{1}); err != nil {
			b.Fatal(err)
		}
	}
}
