// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package uvsim

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/se"
)

// file is a file in memory.
type file struct{ data []byte }

func (f *file) WriteAt(p []byte, at int64) (int, error) {
	if end := int(at) + len(p); end > len(f.data) {
		f.data = append(f.data, make([]byte, end-len(f.data))...)
	}
	return copy(f.data[at:], p), nil
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

func newKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	return must[*ecdh.PrivateKey](t)(ecdh.P521().GenerateKey(rand.Reader))
}

func kernel() []byte {
	k := bytes.Repeat([]byte("kernel code "), 8000)
	copy(k[0x10008:], "S390EP")
	binary.BigEndian.PutUint64(k[0x10430:], 4096)
	return k
}

var ramdisk = strings.Repeat("initramfs ", 3000)

const line = "console=ttysclp0 panic=-1"

func options(hosts ...*ecdh.PrivateKey) se.CreateOptions {
	o := se.CreateOptions{
		Kernel: bytes.NewReader(kernel()), Ramdisk: strings.NewReader(ramdisk), CommandLine: []byte(line), PCF: se.DefaultPCF,
		Bootloader: &se.Bootloader{Stage3a: make([]byte, 0x2000), Stage3b: bytes.Repeat([]byte{7}, 0x1800)},
	}
	for _, h := range hosts {
		o.HostKeys = append(o.HostKeys, h.PublicKey())
	}
	return o
}

func create(t testing.TB, o se.CreateOptions) ([]byte, *se.Image) {
	t.Helper()
	var f file
	img, err := se.Create(t.Context(), &f, o)
	if err != nil {
		t.Fatal(err)
	}
	return f.data, img
}

func open(t testing.TB, m *Machine, data []byte) (*Guest, error) {
	t.Helper()
	g, err := m.Open(t.Context(), bytes.NewReader(data), int64(len(data)))
	if err == nil {
		t.Cleanup(g.Close)
	}
	return g, err
}

func TestOpen(t *testing.T) {
	t.Parallel()
	a, b, other := newKey(t), newKey(t), newKey(t)
	for name, tc := range map[string]struct {
		pcf     se.Flags
		machine *Machine
	}{
		"first key":         {se.DefaultPCF, &Machine{HostKeys: []*ecdh.PrivateKey{a}}},
		"second key":        {se.DefaultPCF, &Machine{HostKeys: []*ecdh.PrivateKey{other, b}}},
		"components clear":  {se.DefaultPCF | se.PCFNoComponentEncryption, &Machine{HostKeys: []*ecdh.PrivateKey{a}}},
		"backup key":        {se.DefaultPCF | se.PCFBackupTarget, &Machine{HostKeys: []*ecdh.PrivateKey{other}, BackupKeys: []*ecdh.PrivateKey{a}}},
		"key, backup taken": {se.DefaultPCF | se.PCFBackupTarget, &Machine{HostKeys: []*ecdh.PrivateKey{a}, BackupKeys: []*ecdh.PrivateKey{other}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options(a, b)
			o.PCF = tc.pcf
			data, _ := create(t, o)
			g := must[*Guest](t)(open(t, tc.machine, data))
			for _, part := range []struct {
				write func(context.Context, io.Writer) error
				want  string
			}{{g.WriteKernel, string(kernel())}, {g.WriteRamdisk, ramdisk}, {g.WriteCommandLine, line + "\x00"}} {
				var got bytes.Buffer
				if err := part.write(t.Context(), &got); err != nil || got.String() != part.want {
					t.Errorf("%d bytes, %v; want %d", got.Len(), err, len(part.want))
				}
			}
		})
	}
}

func TestOpenWithoutRamdiskAndCommandLine(t *testing.T) {
	t.Parallel()
	host := newKey(t)
	o := options(host)
	o.Ramdisk, o.CommandLine = nil, nil
	data, _ := create(t, o)
	g := must[*Guest](t)(open(t, &Machine{HostKeys: []*ecdh.PrivateKey{host}}, data))
	var got bytes.Buffer
	if err := errors.Join(g.WriteRamdisk(t.Context(), &got), g.WriteCommandLine(t.Context(), &got)); err != nil || got.Len() != 0 {
		t.Errorf("%q, %v", got.Bytes(), err)
	}
}

// Unsealed in place, an image holds its parts in the clear and starts in stage3b.
func TestUnseal(t *testing.T) {
	t.Parallel()
	host := newKey(t)
	data, img := create(t, options(host))
	sealed := slices.Clone(data)
	g := must[*Guest](t)(open(t, &Machine{HostKeys: []*ecdh.PrivateKey{host}}, sealed))
	out := &file{data}
	if err := g.Unseal(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		part se.Region
		want string
	}{{g.Args.Kernel, string(kernel())}, {g.Args.Ramdisk, ramdisk}, {g.Args.CommandLine, line + "\x00"}} {
		if got := out.data[c.part.Address : c.part.Address+c.part.Size]; string(got) != c.want {
			t.Errorf("part at 0x%x is not in the clear", c.part.Address)
		}
	}
	if psw := binary.BigEndian.Uint64(out.data); psw != 0x0008000180000000|g.Confidential.PSWAddress {
		t.Errorf("short PSW %x", psw)
	}
	if !bytes.Equal(out.data[8:img.IPIB.Components[0].Address], sealed[8:img.IPIB.Components[0].Address]) {
		t.Error("something else was changed")
	}
	if _, err := open(t, &Machine{HostKeys: []*ecdh.PrivateKey{host}}, out.data); err == nil {
		t.Error("the unsealed image still verifies")
	}
}

func TestOpenRefusesMachines(t *testing.T) {
	t.Parallel()
	host, other := newKey(t), newKey(t)
	o := options(host)
	plain, _ := create(t, o)
	o = options(host)
	o.PCF |= se.PCFBackupTarget
	backup, _ := create(t, o)
	for name, tc := range map[string]struct {
		image   []byte
		machine *Machine
		want    string
	}{
		"zero machine":           {plain, &Machine{}, "KVM_PV_SET_SEC_PARMS: rc 0x0108 rrc 0x0005: host key hash not found"},
		"wrong host key":         {plain, &Machine{HostKeys: []*ecdh.PrivateKey{other}}, "KVM_PV_SET_SEC_PARMS: rc 0x0108 rrc 0x0005: host key hash not found"},
		"backup key not allowed": {plain, &Machine{BackupKeys: []*ecdh.PrivateKey{host}}, "KVM_PV_SET_SEC_PARMS: rc 0x0108 rrc 0x0005: host key hash not found"},
		"wrong backup key":       {backup, &Machine{BackupKeys: []*ecdh.PrivateKey{other}}, "KVM_PV_SET_SEC_PARMS: rc 0x0108 rrc 0x0034: backup host key hash not found"},
	} {
		if _, err := open(t, tc.machine, tc.image); err == nil || err.Error() != tc.want {
			t.Errorf("%s: error %v, want %s", name, err, tc.want)
		}
	}
}

// One flipped bit in each region of an image, and what the machine answers.
func TestOneBitFlipped(t *testing.T) {
	t.Parallel()
	host := newKey(t)
	data, img := create(t, options(host))
	machine := &Machine{HostKeys: []*ecdh.PrivateKey{host}}
	hdr, ipib := img.HeaderOffset, img.IPIBOffset
	slots := hdr + 0x1a0
	enc := slots + 80
	const corrupt = "KVM_PV_SET_SEC_PARMS: rc 0x010a rrc 0x0000: header corrupt"
	for name, tc := range map[string]struct {
		at   int64
		mask byte
		want string
	}{
		"header mark":           {hdr, 1, corrupt},
		"header version":        {hdr + 0x0b, 1, "KVM_PV_SET_SEC_PARMS: rc 0x0104 rrc 0x0001: header version mismatch"},
		"header size":           {hdr + 0x0f, 1, "KVM_PV_SET_SEC_PARMS: rc 0x010a rrc 0x0031: header length mismatch"},
		"header IV":             {hdr + 0x10, 1, corrupt},
		"header reserved":       {hdr + 0x1f, 1, corrupt},
		"number of key slots":   {hdr + 0x27, 1, "KVM_PV_SET_SEC_PARMS: rc 0x010a rrc 0x0040: no key slots"},
		"size of the encrypted": {hdr + 0x2f, 1, "KVM_PV_SET_SEC_PARMS: rc 0x010a rrc 0x0039: size of the encrypted area"},
		"number of pages":       {hdr + 0x37, 1, corrupt},
		"known PCF":             {hdr + 0x3f, 0x80, corrupt},
		"unknown PCF":           {hdr + 0x38, 0x80, "KVM_PV_SET_SEC_PARMS: rc 0x0106 rrc 0x0030: unsupported plaintext control flag"},
		"customer key":          {hdr + 0x8f, 1, "KVM_PV_SET_SEC_PARMS: rc 0x0108 rrc 0x000b: customer ECDH key is not valid"},
		"PLD":                   {hdr + 0xe0, 1, corrupt},
		"ALD":                   {hdr + 0x120, 1, corrupt},
		"TLD":                   {hdr + 0x160, 1, corrupt},
		"host key hash":         {slots, 1, "KVM_PV_SET_SEC_PARMS: rc 0x0108 rrc 0x0005: host key hash not found"},
		"wrapped key":           {slots + 32, 1, "KVM_PV_SET_SEC_PARMS: rc 0x0108 rrc 0x0000: header key cannot be unwrapped"},
		"tag of the slot":       {slots + 64, 1, "KVM_PV_SET_SEC_PARMS: rc 0x0108 rrc 0x0000: header key cannot be unwrapped"},
		"encrypted area":        {enc, 1, corrupt},
		"header tag":            {enc + 128, 1, corrupt},
		"kernel":                {int64(img.IPIB.Components[0].Address) + 5000, 1, "KVM_PV_VERIFY: rc 0x0102 rrc 0x001b: page list digest (PLD) mismatch"},
		"ramdisk":               {int64(img.IPIB.Components[1].Address), 1, "KVM_PV_VERIFY: rc 0x0102 rrc 0x001b: page list digest (PLD) mismatch"},
		"command line":          {int64(img.IPIB.Components[2].Address) + 4095, 1, "KVM_PV_VERIFY: rc 0x0102 rrc 0x001b: page list digest (PLD) mismatch"},
		"stage3b":               {int64(img.IPIB.Components[3].Address), 0x80, "KVM_PV_VERIFY: rc 0x0102 rrc 0x001b: page list digest (PLD) mismatch"},
		"IPIB length":           {ipib, 1, "DIAG 308 subcode 8: rc 0x0402 rrc 0x0000: the IPIB is not valid"},
		"IPIB type":             {ipib + 0x0c, 1, "DIAG 308 subcode 8: rc 0x0402 rrc 0x0000: the IPIB is not valid"},
		"IPIB components":       {ipib + 0x77, 1, "DIAG 308 subcode 8: rc 0x0402 rrc 0x0000: the IPIB is not valid"},
		"tweak prefix":          {ipib + 0x8f, 1, "KVM_PV_VERIFY: rc 0x0102 rrc 0x001c: tweak list digest (TLD) mismatch"},
		"tweak prefix order":    {ipib + 0x88, 0x80, "DIAG 308 subcode 8: rc 0x0402 rrc 0x0000: the IPIB is not valid"},
		"component address":     {ipib + 0x88 + 14, 0x10, "KVM_PV_VERIFY: rc 0x0102 rrc 0x001a: address list digest (ALD) mismatch"},
		"component overlaps":    {ipib + 0x88 + 24 + 13, 0x02, "DIAG 308 subcode 8: rc 0x0402 rrc 0x0000: the IPIB is not valid"},
		"component size":        {ipib + 0x88 + 3*24 + 22, 0x10, "KVM_PV_VERIFY: rc 0x0102 rrc 0x001d: number of pages mismatch"},
		"header length in args": {img.ArgsOffset + 15, 1, "KVM_PV_SET_SEC_PARMS: rc 0x010a rrc 0x0031: header length mismatch"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			changed := append(slices.Clone(data), make([]byte, 4*se.PageSize)...)
			changed[tc.at] ^= tc.mask
			_, err := open(t, machine, changed)
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("error %v, want %s", err, tc.want)
			}
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Errorf("%T is no answer of a machine", err)
			}
		})
	}
}

// An address that is listed but not sealed there: the pages are the same, their addresses are not.
func TestMovedComponent(t *testing.T) {
	t.Parallel()
	host := newKey(t)
	data, img := create(t, options(host))
	last := img.IPIB.Components[3]
	moved := append(slices.Clone(data), make([]byte, 8*se.PageSize)...)
	to := last.Address + 2*se.PageSize + last.Size
	copy(moved[to:], data[last.Address:last.Address+last.Size])
	binary.BigEndian.PutUint64(moved[img.IPIBOffset+0x88+3*24+8:], to)
	_, err := open(t, &Machine{HostKeys: []*ecdh.PrivateKey{host}}, moved)
	if e, ok := errors.AsType[*Error](err); !ok || e.RC != rcVerify || e.RRC != rrcALD {
		t.Errorf("error %v", err)
	}
}

// What lies before the components is not covered by the ultravisor: a change goes unseen here as on a real machine.
func TestUncovered(t *testing.T) {
	t.Parallel()
	host := newKey(t)
	data, _ := create(t, options(host))
	for _, at := range []int{0, 100, 0x10000, 0x11000} {
		changed := slices.Clone(data)
		changed[at] ^= 1
		if _, err := open(t, &Machine{HostKeys: []*ecdh.PrivateKey{host}}, changed); err != nil {
			t.Errorf("0x%x: %v", at, err)
		}
	}
}

// What the owner of the keys could have sealed, but no machine would run.
func TestOwnersMistakes(t *testing.T) {
	t.Parallel()
	host := newKey(t)
	o := options(host)
	o.SCF = 1
	data, _ := create(t, o)
	machine := &Machine{HostKeys: []*ecdh.PrivateKey{host}}
	if _, err := open(t, machine, data); err == nil || !strings.HasPrefix(err.Error(), "KVM_PV_SET_SEC_PARMS: rc 0x0109 rrc 0x0000: unsupported secret control flag") {
		t.Errorf("error %v", err)
	}
	_, img := create(t, options(host))
	header := img.Header.Encode()
	if _, err := open(t, machine, header); !errors.Is(err, se.ErrNotImage) {
		t.Errorf("header alone: %v", err)
	}
}

func TestHints(t *testing.T) {
	t.Parallel()
	for _, e := range []*Error{{RC: rcHostKey, RRC: rrcNoHostKey}, {RC: rcVerify, RRC: rrcPLD}} {
		if e.Hint() == "" {
			t.Errorf("%v has no hint", e)
		}
	}
}

func FuzzOpen(f *testing.F) {
	host := newKey(f)
	o := options(host)
	o.Ramdisk, o.HeaderKey = nil, keys.NewSecret(bytes.Repeat([]byte{1}, se.HeaderKeySize))
	data, img := create(f, o)
	f.Add(data)
	f.Add(data[:img.IPIBOffset])
	machine := &Machine{HostKeys: []*ecdh.PrivateKey{host}}
	covered := data[img.HeaderOffset:img.IPIBOffset]
	f.Fuzz(func(t *testing.T, in []byte) {
		g, err := machine.Open(t.Context(), bytes.NewReader(in), int64(len(in)))
		if err != nil {
			return
		}
		defer g.Close()
		if !bytes.Contains(in, covered[len(img.Header.Encode()):][se.PageSize:2*se.PageSize]) {
			t.Error("opened without the pages that were sealed")
		}
	})
}
