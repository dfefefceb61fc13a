// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"debug/elf"
	"encoding/binary"
	"encoding/pem"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/guestimage/rootdisk"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/elftest"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// put writes a file and returns its path.
func put(tb testing.TB, path string, data []byte) string {
	tb.Helper()
	must(tb, os.MkdirAll(filepath.Dir(path), 0o700))
	must(tb, os.WriteFile(path, data, 0o600))
	return path
}

// kernelS390x returns what looks like a bootable s390x kernel of a release.
func kernelS390x(release string) []byte {
	k := make([]byte, 0x11000)
	copy(k[s390MagicAt:], s390Magic[:])
	binary.BigEndian.PutUint64(k[s390VersionAt:], 0x10800)
	copy(k[0x10800:], release+" (builder) #1\x00")
	return k
}

// kernelAMD64 returns what looks like a bootable x86 kernel of a release.
func kernelAMD64(release string) []byte {
	k := make([]byte, 0x4000)
	copy(k[x86MagicAt:], x86Magic[:])
	binary.LittleEndian.PutUint16(k[x86BootFlagAt:], x86BootFlag)
	binary.LittleEndian.PutUint16(k[x86VersionAt:], 0x3000)
	copy(k[0x3200:], release+" (builder) #1\x00")
	return k
}

// certificate returns a self-signed certificate as PEM.
func certificate(tb testing.TB) []byte {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(tb, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(tb, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

const goodAuth = `{"auths": {"registry.test:5000": {"auth": "dXNlcjpwYXNzd29yZA=="}}}`

// inputs makes a complete set of small inputs for an s390x guest.
func inputs(tb testing.TB) Options {
	tb.Helper()
	dir := tb.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	wants, err := initramfs.GuestModules(initramfs.ArchS390x)
	must(tb, err)
	var order strings.Builder
	for _, w := range wants {
		put(tb, in("modules/kernel/"+w.Name+".ko"), elftest.Module(tb, w.Name))
		order.WriteString("kernel/" + w.Name + ".ko\n")
	}
	put(tb, in("modules/modules.order"), []byte(order.String()))
	put(tb, in("modules/modules.builtin"), []byte("kernel/crypto/builtin.ko\n"))
	put(tb, in("rootfs/etc/motd"), []byte("hello\n"))
	static := elftest.Executable(tb, elf.EM_S390)
	return Options{
		Arch: initramfs.ArchS390x, Rootfs: in("rootfs"), ModulesDir: in("modules"),
		Kernel: put(tb, in("vmlinuz"), kernelS390x("6.12-test")),
		Agent:  put(tb, in("agent"), append(static, "agent"...)),
		Crun:   put(tb, in("crun"), append(static, "crun"...)),
		Pause:  put(tb, in("pause"), append(static, "pause"...)),

		RegistryCA:   put(tb, in("ca.pem"), certificate(tb)),
		RegistryAuth: put(tb, in("auth.json"), []byte(goodAuth)),
		ImageKeys:    map[string]string{"kbs:///default/image-key/demo": put(tb, in("demo.key"), bytes.Repeat([]byte{0xa5}, imageKeySize))},
		Secrets:      map[string]string{"kbs:///default/secret/demo": put(tb, in("demo.secret"), []byte("a secret of the demo"))},
		Policy:       layout.PolicyAllowAll,
		LogLevel:     "debug",
		Output:       filepath.Join(tb.TempDir(), "guest"),
		Builder:      "test",
	}
}

// testRand gives the same bytes each time.
func testRand() io.Reader { return mathrand.NewChaCha8([32]byte{1}) }

// testBuilder returns a builder whose disk key is always the same.
func testBuilder(o Options) *builder {
	return &builder{o: o, random: testRand(), writeDisk: rootdisk.Write}
}

func (b *builder) mustBuild(tb testing.TB) *Result {
	tb.Helper()
	res, err := b.build(context.Background())
	must(tb, err)
	return res
}
