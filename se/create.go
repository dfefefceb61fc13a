// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/se/xts"
)

// CreateOptions say what Create makes.
type CreateOptions struct {
	// Kernel is a raw s390x kernel image ("vmlinuz"), not an ELF file.
	Kernel io.Reader
	// Ramdisk is the initramfs; nil means none.
	Ramdisk io.Reader
	// CommandLine is the kernel command line; nil means none. A zero byte is added unless it ends with one.
	CommandLine []byte
	// HostKeys are the public keys of the machines that can open the image, 1 to MaxKeySlots.
	HostKeys []*ecdh.PublicKey
	// Bootloader is the code that starts the guest.
	Bootloader *Bootloader
	// PCF and SCF are the control flags. PCF is mostly DefaultPCF.
	PCF, SCF Flags
	// HeaderKey, ImageKey and CCK are keys that the caller wants and wipes; nil means a random one.
	HeaderKey, ImageKey, CCK *keys.Secret
	// SkipComponentCheck takes a kernel for good that does not look like one.
	SkipComponentCheck bool
	// Workers is the number of goroutines that encrypt; 0 means one for each processor, at most 8.
	Workers int
	// Progress, if not nil, is called with the number of bytes sealed so far, from one goroutine.
	Progress func(done int64)

	// What is random outside of tests.
	random   io.Reader
	customer *ecdh.PrivateKey
}

// ErrKernel means that a kernel image does not look like one that can be started.
var ErrKernel = errors.New("not a raw s390x kernel image")

// CommandLineError says that a command line is too long for the kernel.
type CommandLineError struct{ Size, Max uint64 }

// Error implements error.
func (e *CommandLineError) Error() string {
	return fmt.Sprintf("the command line has %d bytes with its closing zero, the kernel takes %d", e.Size, e.Max)
}

// Create writes an image. It streams: its memory does not grow with the size of kernel or initramfs. On an error, what
// is in out is no image.
func Create(ctx context.Context, out io.WriterAt, o CreateOptions) (*Image, error) {
	c, err := newCreator(&o)
	if err != nil {
		return nil, fmt.Errorf("create image: %w", err)
	}
	defer c.secret.Wipe()
	defer c.headerKey.Wipe()
	i, err := c.create(ctx, out)
	if err != nil {
		return nil, fmt.Errorf("create image: %w", err)
	}
	return i, nil
}

// creator is one run of Create.
type creator struct {
	o         *CreateOptions
	headerKey *keys.Secret
	secret    *Confidential
	cipher    *xts.Cipher // nil if the components stay in the clear
	header    *Header
	address   uint64 // of the next component
	parts     []Component
	digester  *Digester
	free      chan []byte // buffers; nil is one that has not been made yet
	done      int64
}

func newCreator(o *CreateOptions) (*creator, error) {
	if o.random == nil {
		o.random = rand.Reader
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	o.Workers = min(o.Workers, maxWorkers)
	if o.Kernel == nil || o.Bootloader == nil {
		return nil, errors.New("no kernel or no bootloader")
	}
	if err := checkStage("stage3a", o.Bootloader.Stage3a, minStage3aSize); err != nil {
		return nil, err
	}
	if err := checkStage("stage3b", o.Bootloader.Stage3b, stage3bArgsSize); err != nil {
		return nil, err
	}
	if n := len(o.HostKeys); n < 1 || n > MaxKeySlots {
		return nil, fmt.Errorf("%d host keys are not 1 to %d", n, MaxKeySlots)
	}
	c := &creator{
		o: o, digester: NewDigester(), free: make(chan []byte, 4*o.Workers), secret: &Confidential{PSWMask: pswMask, SCF: o.SCF},
	}
	for range cap(c.free) {
		c.free <- nil
	}
	for _, k := range []struct {
		to    **keys.Secret
		given *keys.Secret
		size  int
		name  string
	}{
		{&c.headerKey, o.HeaderKey, HeaderKeySize, "header key"},
		{&c.secret.ImageKey, o.ImageKey, ImageKeySize, "image key"},
		{&c.secret.CCK, o.CCK, CCKSize, "CCK"},
	} {
		var err error
		if *k.to, err = o.key(k.given, k.size, k.name); err != nil {
			c.headerKey.Wipe()
			c.secret.Wipe()
			return nil, err
		}
	}
	if err := c.init(); err != nil {
		c.headerKey.Wipe()
		c.secret.Wipe()
		return nil, err
	}
	return c, nil
}

// key returns a copy of the given key, or a random one.
func (o *CreateOptions) key(given *keys.Secret, size int, name string) (*keys.Secret, error) {
	if given != nil {
		if n := len(given.Bytes()); n != size {
			return nil, fmt.Errorf("%s of %d bytes instead of %d", name, n, size)
		}
		return given.Clone(), nil
	}
	key := keys.NewSecret(make([]byte, size))
	if _, err := io.ReadFull(o.random, key.Bytes()); err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return key, nil
}

// init fills in what of the header is known before the components.
func (c *creator) init() error {
	c.header = &Header{PCF: c.o.PCF}
	if _, err := io.ReadFull(c.o.random, c.header.IV[:]); err != nil {
		return err
	}
	if !c.o.PCF.Has(PCFNoComponentEncryption) {
		var err error
		if c.cipher, err = xts.New(c.secret.ImageKey.Bytes()); err != nil {
			return fmt.Errorf("image key: %w", err)
		}
	}
	customer := c.o.customer
	if customer == nil {
		var err error
		if customer, err = ecdh.P521().GenerateKey(rand.Reader); err != nil {
			return fmt.Errorf("make customer key: %w", err)
		}
	}
	var err error
	if c.header.CustomerKey, err = encodePoint(customer.PublicKey()); err != nil {
		return err
	}
	seen := make(map[[32]byte]bool)
	for n, host := range c.o.HostKeys {
		slot, err := wrap(c.headerKey, customer, host)
		if err != nil {
			return fmt.Errorf("host key %d: %w", n+1, err)
		}
		if seen[slot.HostKeyHash] {
			return fmt.Errorf("host key %d is given twice (hash %x)", n+1, slot.HostKeyHash)
		}
		seen[slot.HostKeyHash] = true
		c.header.Slots = append(c.header.Slots, slot)
	}
	return nil
}

func (c *creator) create(ctx context.Context, out io.WriterAt) (*Image, error) {
	stage3a := bytes.Clone(c.o.Bootloader.Stage3a)
	headerAt := max(roundUp(stage3aAddress+uint64(len(stage3a))), minHeaderAddress)
	c.address = roundUp(headerAt + uint64(c.header.Size()))
	boot := BootArgs{PSWMask: pswMask, PSWAddress: kernelEntry}
	kernel := bufio.NewReaderSize(c.o.Kernel, kernelHeadSize)
	if err := c.checkKernel(kernel); err != nil {
		return nil, err
	}
	var err error
	if boot.Kernel, err = c.component(ctx, out, KindKernel, kernel); err != nil {
		return nil, err
	}
	if c.o.Ramdisk != nil {
		if boot.Ramdisk, err = c.component(ctx, out, KindRamdisk, c.o.Ramdisk); err != nil {
			return nil, err
		}
	}
	if c.o.CommandLine != nil {
		if boot.CommandLine, err = c.component(ctx, out, KindCommandLine, bytes.NewReader(c.commandLine())); err != nil {
			return nil, err
		}
	}
	stage3b := bytes.Clone(c.o.Bootloader.Stage3b)
	copy(stage3b[len(stage3b)-stage3bArgsSize:], boot.encode())
	start, err := c.component(ctx, out, KindStage3b, bytes.NewReader(stage3b))
	if err != nil {
		return nil, err
	}
	c.secret.PSWAddress = start.Address
	return c.finish(out, stage3a, headerAt)
}

// commandLine returns the command line with the zero byte that ends it.
func (c *creator) commandLine() []byte {
	line := bytes.Clone(c.o.CommandLine)
	if len(line) == 0 || line[len(line)-1] != 0 {
		line = append(line, 0)
	}
	return line
}

// checkKernel looks at the start of a kernel image.
func (c *creator) checkKernel(kernel *bufio.Reader) error {
	head, err := kernel.Peek(kernelHeadSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read kernel: %w", err)
	}
	if c.o.SkipComponentCheck {
		return nil
	}
	if bytes.HasPrefix(head, []byte(elfMagic)) {
		return fmt.Errorf("%w: it is an ELF file", ErrKernel)
	}
	if len(head) < kernelHeadSize || !bytes.HasPrefix(head[kernelMagicAddress:], []byte(kernelMagic)) {
		return fmt.Errorf("%w: the mark %q is not at 0x%x", ErrKernel, kernelMagic, kernelMagicAddress)
	}
	limit := binary.BigEndian.Uint64(head[commandLineSizeAt:])
	if limit == 0 {
		limit = defaultCommandLine
	}
	if n := uint64(len(c.commandLine())); n > min(limit, maxCommandLineBytes) {
		return &CommandLineError{Size: n, Max: min(limit, maxCommandLineBytes)}
	}
	if i := bytes.IndexByte(c.o.CommandLine, 0); i >= 0 && i < len(c.o.CommandLine)-1 {
		return errors.New("the command line has a zero byte: the kernel would not see what follows")
	}
	return nil
}

// finish writes what is in the clear, after the components.
func (c *creator) finish(out io.WriterAt, stage3a []byte, headerAt uint64) (*Image, error) {
	c.header.Digests = c.digester.Sum()
	if err := c.header.seal(c.headerKey, c.secret); err != nil {
		return nil, err
	}
	ipib := &IPIB{Version: 1, HeaderAddress: headerAt, HeaderSize: uint64(c.header.Size()), Components: c.parts}
	block, err := ipib.Encode()
	if err != nil {
		return nil, err
	}
	argsAt := uint64(stage3aAddress + len(stage3a) - stage3aArgsSize)
	args := stage3aArgs{headerOffset: headerAt - argsAt, headerSize: uint64(c.header.Size()), ipibOffset: c.address - argsAt}
	copy(stage3a[len(stage3a)-stage3aArgsSize:], args.encode())
	meta := binary.BigEndian.AppendUint64([]byte(metadataMagic), headerAt)
	meta = binary.BigEndian.AppendUint32(meta, metadataVersion)
	meta = binary.BigEndian.AppendUint64(meta, c.address)
	for _, w := range []struct {
		at   uint64
		data []byte
	}{
		{0, binary.BigEndian.AppendUint64(nil, shortPSW)},
		{metadataAddress, meta},
		{stage3aAddress, stage3a},
		{headerAt, c.header.Encode()},
		{c.address, block},
	} {
		if _, err := out.WriteAt(w.data, int64(w.at)); err != nil {
			return nil, err
		}
	}
	return &Image{
		Layout: LayoutPvimg, Size: int64(c.address) + int64(len(block)), Header: c.header, HeaderOffset: int64(headerAt),
		IPIB: ipib, IPIBOffset: int64(c.address), ArgsOffset: int64(argsAt),
	}, nil
}
