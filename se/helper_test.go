// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	mathrand "math/rand/v2"
	"testing"

	"github.com/cloister-cc/cloister/keys"
)

// memory is a file in memory.
type memory struct{ data []byte }

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	if end := int(at) + len(p); end > len(m.data) {
		m.data = append(m.data, make([]byte, end-len(m.data))...)
	}
	return copy(m.data[at:], p), nil
}

func must[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// testRand returns the same bytes in every run.
func testRand() *mathrand.ChaCha8 { return mathrand.NewChaCha8([32]byte{1, 2, 3}) }

// testKey returns a host key that is the same in every run.
func testKey(t testing.TB, n byte) *ecdh.PrivateKey {
	t.Helper()
	raw := bytes.Repeat([]byte{n}, coordinate)
	raw[0] = 0 // below the order of the curve
	return must[*ecdh.PrivateKey](t)(ecdh.P521().NewPrivateKey(raw))
}

// testKernel returns something that looks like a kernel of that size.
func testKernel(size int) []byte {
	k := make([]byte, size)
	_, _ = testRand().Read(k)
	copy(k[kernelMagicAddress:], kernelMagic)
	binary.BigEndian.PutUint64(k[commandLineSizeAt:], 4096)
	return k
}

func testBootloader() *Bootloader {
	a, b := make([]byte, 0x1234+stage3aArgsSize), make([]byte, 0x1100+stage3bArgsSize)
	for i := range a {
		a[i] = byte(i % 251)
	}
	for i := range b {
		b[i] = byte(i % 241)
	}
	return &Bootloader{Stage3a: a, Stage3b: b}
}

// testOptions are options whose outcome is the same in every run.
func testOptions(t testing.TB, hosts ...*ecdh.PrivateKey) CreateOptions {
	t.Helper()
	o := CreateOptions{
		Kernel: bytes.NewReader(testKernel(100_000)), Ramdisk: bytes.NewReader(bytes.Repeat([]byte("ramdisk "), 5000)),
		CommandLine: []byte("console=ttysclp0 panic=-1"), Bootloader: testBootloader(), PCF: DefaultPCF,
		random: testRand(), customer: testKey(t, 0x77),
	}
	for _, h := range hosts {
		o.HostKeys = append(o.HostKeys, h.PublicKey())
	}
	return o
}

func create(t testing.TB, o CreateOptions) ([]byte, *Image) {
	t.Helper()
	var m memory
	i, err := Create(t.Context(), &m, o)
	if err != nil {
		t.Fatal(err)
	}
	return m.data, i
}

func open(t testing.TB, data []byte) *Image {
	t.Helper()
	return must[*Image](t)(OpenImage(bytes.NewReader(data), int64(len(data))))
}

// headerKey opens the slot of a host key.
func headerKey(t testing.TB, h *Header, host *ecdh.PrivateKey) *keys.Secret {
	t.Helper()
	hash := must[[32]byte](t)(HostKeyHash(host.PublicKey()))
	for _, s := range h.Slots {
		if s.HostKeyHash == hash {
			return must[*keys.Secret](t)(s.Unwrap(host, h.CustomerKey))
		}
	}
	t.Fatalf("no slot of %x", hash)
	return nil
}

func secret(n, size int) *keys.Secret {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i * n)
	}
	return keys.NewSecret(b)
}

func newHostKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	return must[*ecdh.PrivateKey](t)(ecdh.P521().GenerateKey(rand.Reader))
}
