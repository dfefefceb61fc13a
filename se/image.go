// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The layouts that OpenImage knows.
const (
	// LayoutPvimg has metadata at 0xc000 and the IPIB at the end.
	LayoutPvimg = "pvimg"
	// LayoutGenprotimg has no metadata, and the IPIB before the header.
	LayoutGenprotimg = "genprotimg"
	// LayoutHeader is a header alone, as pvextract-hdr writes it.
	LayoutHeader = "header"
)

// Image describes an image.
type Image struct {
	// Layout is LayoutPvimg, LayoutGenprotimg or LayoutHeader.
	Layout string
	// Size is the size of the file in bytes.
	Size int64
	// Header is the header and HeaderOffset its place.
	Header       *Header
	HeaderOffset int64
	// IPIB is the IPL parameter block and IPIBOffset its place; nil for LayoutHeader.
	IPIB       *IPIB
	IPIBOffset int64
	// ArgsOffset is the place of the arguments of stage3a, by which a machine finds header and IPIB.
	ArgsOffset int64

	argsHeaderSize uint64
}

// ShortPSWForTCG returns the first 8 bytes of an image whose components are in the clear, so that a machine without
// ultravisor starts in stage3b at that address, and not in stage3a.
func ShortPSWForTCG(address uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, 0x0008000180000000|address)
}

// OpenImage reads the descriptions in an image of any tool, or a header alone. It reads no component. The components are
// inside the file and do not overlap; whether they are what the header says is not checked. Anything else is ErrNotImage
// or a *FormatError.
func OpenImage(r io.ReaderAt, size int64) (*Image, error) {
	start := make([]byte, len(headerMagic))
	if _, err := r.ReadAt(start, 0); err == nil && string(start) == headerMagic {
		return openHeader(r, size)
	}
	head, err := readRange(r, size, 0, headSize)
	if err != nil {
		return nil, err
	}
	i, err := locate(head, size)
	if err != nil {
		return nil, err
	}
	if i.Header, err = readHeader(r, size, i.HeaderOffset); err != nil {
		return nil, err
	}
	if i.argsHeaderSize != uint64(i.Header.Size()) {
		return nil, formatError(PartArgs, 8, "header of %d bytes, it has %d", i.argsHeaderSize, i.Header.Size())
	}
	block, err := readRange(r, size, i.IPIBOffset, maxIPIB)
	if err != nil {
		return nil, err
	}
	if i.IPIB, err = ParseIPIB(block); err != nil {
		return nil, err
	}
	return i, i.checkComponents()
}

// headSize bounds the part of an image in which header and arguments are looked for.
const headSize = stage3aAddress + maxStageSize

// readRange reads up to n bytes; less where the file ends before.
func readRange(r io.ReaderAt, size, offset, n int64) ([]byte, error) {
	if offset < 0 || offset >= size {
		return nil, formatError(PartImage, offset, "beyond the end of the file of %d bytes", size)
	}
	data := make([]byte, min(n, size-offset))
	if _, err := r.ReadAt(data, offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read image: %w", err)
	}
	return data, nil
}

func readHeader(r io.ReaderAt, size, offset int64) (*Header, error) {
	data, err := readRange(r, size, offset, MaxHeaderSize)
	if err != nil {
		return nil, err
	}
	return ParseHeader(data)
}

func openHeader(r io.ReaderAt, size int64) (*Image, error) {
	h, err := readHeader(r, size, 0)
	if err != nil {
		return nil, err
	}
	return &Image{Layout: LayoutHeader, Size: size, Header: h, ArgsOffset: -1, IPIBOffset: -1}, nil
}

// locate finds header and IPIB as a machine does: by the arguments of stage3a. Metadata, where it is, must agree.
func locate(head []byte, size int64) (*Image, error) {
	i := &Image{Layout: LayoutGenprotimg, Size: size}
	if len(head) < stage3aAddress+minStage3aSize {
		return nil, fmt.Errorf("%w: too small", ErrNotImage)
	}
	meta := head[metadataAddress:]
	if bytes.HasPrefix(meta, []byte(metadataMagic)) {
		i.Layout = LayoutPvimg
		if v := binary.BigEndian.Uint32(meta[16:]); v != metadataVersion {
			return nil, formatError(PartImage, metadataAddress+16, "metadata of version %d, only %d is known", v, metadataVersion)
		}
		if !i.findArgs(head, int64(binary.BigEndian.Uint64(meta[8:]))) {
			return nil, formatError(PartImage, metadataAddress+8, "the arguments of stage3a do not name the header that the metadata names")
		}
		if at := int64(binary.BigEndian.Uint64(meta[20:])); at != i.IPIBOffset {
			return nil, formatError(PartImage, metadataAddress+20, "IPIB at 0x%x, but at 0x%x in the arguments of stage3a", at, i.IPIBOffset)
		}
		return i, nil
	}
	for at := int64(stage3aAddress); at < int64(len(head)); at += PageSize {
		if bytes.HasPrefix(head[at:], []byte(headerMagic)) && i.findArgs(head, at) {
			return i, nil
		}
	}
	return nil, ErrNotImage
}

// findArgs looks for arguments of stage3a that name the header at that offset. What the header itself says does not
// matter, so that an error in it is found where it is. The last place is taken: the arguments end stage3a.
func (i *Image) findArgs(head []byte, header int64) bool {
	if header < stage3aAddress || header > int64(len(head)) {
		return false
	}
	for at := header - stage3aArgsSize; at >= stage3aAddress; at-- {
		a := parseStage3aArgs(head[at:])
		ipib := uint64(at) + a.ipibOffset
		if a.headerOffset != uint64(header-at) || a.ipibOffset >= uint64(i.Size) || ipib >= uint64(i.Size) || ipib%PageSize != 0 {
			continue
		}
		i.HeaderOffset, i.ArgsOffset, i.IPIBOffset, i.argsHeaderSize = header, at, int64(ipib), a.headerSize
		return true
	}
	return false
}

func (i *Image) checkComponents() error {
	end := uint64(0)
	for n, c := range i.IPIB.Components {
		at := int64(ipibFixed + n*ipibEntry)
		switch {
		case c.Address%PageSize != 0 || c.Size%PageSize != 0 || c.Size == 0:
			return formatError(PartIPIB, at+8, "component %d (address 0x%x, size 0x%x) is not whole pages", n, c.Address, c.Size)
		case c.Address < end:
			return formatError(PartIPIB, at+8, "component %d at 0x%x overlaps the one before or comes after it", n, c.Address)
		case c.Address > uint64(i.Size) || c.Size > uint64(i.Size)-c.Address:
			return formatError(PartIPIB, at+8, "component %d (address 0x%x, size 0x%x) goes beyond the end of the file of %d bytes", n, c.Address, c.Size, i.Size)
		}
		end = c.Address + c.Size
	}
	return nil
}

// Component returns the component that begins at an address.
func (i *Image) Component(address uint64) (Component, bool) {
	if i.IPIB == nil {
		return Component{}, false
	}
	for _, c := range i.IPIB.Components {
		if c.Address == address {
			return c, true
		}
	}
	return Component{}, false
}
