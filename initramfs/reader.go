// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxImageSize bounds what NewImageReader unpacks, in bytes.
const maxImageSize = 8 << 30

// zstdMagic are the first bytes of a zstd frame, RFC 8878 section 3.1.1.
var zstdMagic = [4]byte{0x28, 0xb5, 0x2f, 0xfd}

// Entry is one entry of an archive as Reader finds it.
type Entry struct {
	// Path is absolute and clean.
	Path string
	// Mode is as in File.
	Mode fs.FileMode
	// Size is the size in bytes of a regular file's content.
	Size int64
	// Target is where a symbolic link points to.
	Target string
	// Major and Minor are the numbers of a device.
	Major, Minor uint32
	// Inode, UID, GID and ModTime (seconds since 1970) are the header's fields.
	Inode, UID, GID, ModTime uint32
}

// Reader reads one newc archive. It refuses what our own writer never makes and what would let an inspected image
// hold something else than it shows: other formats, paths that leave the root, bytes after the trailer.
type Reader struct {
	r       *bufio.Reader
	left    int64 // bytes of the current entry's content not yet read
	pad     int64 // padding after them
	n       int64 // bytes consumed, for alignment
	entries int
	err     error
}

// NewReader returns a reader of an uncompressed archive.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 1<<16)} }

// NewImageReader returns a reader of an archive that is uncompressed or one zstd stream. The caller closes it, which
// frees the decompressor and leaves r alone.
func NewImageReader(r io.Reader) (*Reader, io.Closer, error) {
	br := bufio.NewReader(r)
	head, err := br.Peek(len(zstdMagic))
	if err != nil {
		return nil, nil, fmt.Errorf("read initramfs: %w", noEOF(err))
	}
	if !bytes.Equal(head, zstdMagic[:]) {
		return NewReader(br), io.NopCloser(nil), nil
	}
	z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, nil, fmt.Errorf("read initramfs: %w", err)
	}
	rc := z.IOReadCloser()
	return NewReader(&capReader{r: rc, left: maxImageSize}), rc, nil
}

// capReader fails, instead of ending, after left bytes.
type capReader struct {
	r    io.Reader
	left int64
}

func (c *capReader) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, fmt.Errorf("the image unpacks to more than %d bytes", int64(maxImageSize))
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// Next goes to the next entry; what is unread of the current one's content is skipped. It returns io.EOF after the
// trailer, once it has made sure that nothing but zeros follows.
func (r *Reader) Next() (*Entry, error) {
	if r.err != nil {
		return nil, r.err
	}
	e, err := r.next()
	if err != nil {
		r.err = err
	}
	return e, err
}

func (r *Reader) next() (*Entry, error) {
	if err := r.discard(r.left + r.pad); err != nil {
		return nil, fmt.Errorf("read cpio content: %w", err)
	}
	r.left, r.pad = 0, 0
	h, err := r.header()
	if err != nil {
		return nil, fmt.Errorf("read cpio header: %w", err)
	}
	name, err := r.name(h)
	if err != nil {
		return nil, fmt.Errorf("read cpio name: %w", err)
	}
	if name == trailerName {
		return nil, r.end(h)
	}
	if r.entries++; r.entries > MaxEntries {
		return nil, fmt.Errorf("read cpio: more than %d entries", MaxEntries)
	}
	e := &Entry{Inode: h[fieldIno], UID: h[fieldUID], GID: h[fieldGID], ModTime: h[fieldMtime]}
	if err := r.entry(e, name, h); err != nil {
		return nil, fmt.Errorf("read cpio entry %q: %w", name, err)
	}
	return e, nil
}

// Read reads the content of the current regular file.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil && !errors.Is(r.err, io.EOF) {
		return 0, r.err
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.r.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	r.n += int64(n)
	if err != nil {
		r.err = noEOF(err)
		return n, r.err
	}
	return n, nil
}

// Fields of a newc header, in their order.
const (
	fieldIno = iota
	fieldMode
	fieldUID
	fieldGID
	fieldNlink
	fieldMtime
	fieldSize
	fieldDevMajor
	fieldDevMinor
	fieldRdevMajor
	fieldRdevMinor
	fieldNameSize
	fieldCheck
	fieldCount
)

type newcHeader [fieldCount]uint32

func (r *Reader) header() (newcHeader, error) {
	var buf [newcHeaderSize]byte
	var h newcHeader
	if err := r.full(buf[:]); err != nil {
		return h, err
	}
	if string(buf[:len(newcMagic)]) != newcMagic {
		return h, fmt.Errorf("magic %q is not that of the newc format", buf[:len(newcMagic)])
	}
	for i := range h {
		var b [4]byte
		off := len(newcMagic) + 8*i
		if _, err := hex.Decode(b[:], buf[off:off+8]); err != nil {
			return h, fmt.Errorf("field %d: %w", i, err)
		}
		h[i] = uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	}
	return h, nil
}

func (r *Reader) name(h newcHeader) (string, error) {
	size := h[fieldNameSize]
	if size < 2 || size > MaxPathSize+1 {
		return "", fmt.Errorf("size %d is not between 2 and %d", size, MaxPathSize+1)
	}
	buf := make([]byte, size)
	if err := r.full(buf); err != nil {
		return "", err
	}
	if bytes.IndexByte(buf, 0) != len(buf)-1 {
		return "", errors.New("the name does not end with its only NUL")
	}
	return string(buf[:size-1]), r.discard(-r.n & (newcAlign - 1))
}

func (r *Reader) entry(e *Entry, name string, h newcHeader) error {
	e.Path = "/" + strings.TrimPrefix(name, "/")
	if path.Clean(e.Path) != e.Path || e.Path == "/" {
		return errors.New("the path is not clean")
	}
	size := int64(h[fieldSize])
	mode := h[fieldMode]
	e.Mode = fs.FileMode(mode & 0o777)
	if mode&^(typeMask|0o777) != 0 {
		return fmt.Errorf("mode %#o has bits other than type and permissions", mode)
	}
	switch mode & typeMask {
	case typeRegular:
		e.Size, r.left = size, size
		r.pad = -(r.n + size) & (newcAlign - 1)
		return nil
	case typeSymlink:
		e.Mode |= fs.ModeSymlink
		return r.symlink(e, size)
	case typeDir:
		e.Mode |= fs.ModeDir
	case typeChar:
		e.Mode |= fs.ModeDevice | fs.ModeCharDevice
		e.Major, e.Minor = h[fieldRdevMajor], h[fieldRdevMinor]
	default:
		return fmt.Errorf("type of mode %#o is not supported", mode)
	}
	if size != 0 {
		return fmt.Errorf("a directory or device with %d bytes of content", size)
	}
	return nil
}

func (r *Reader) symlink(e *Entry, size int64) error {
	if size < 1 || size > MaxPathSize {
		return fmt.Errorf("symbolic link of %d bytes", size)
	}
	buf := make([]byte, size)
	if err := r.full(buf); err != nil {
		return err
	}
	if bytes.IndexByte(buf, 0) >= 0 {
		return errors.New("symbolic link with a NUL")
	}
	e.Target = string(buf)
	return r.discard(-r.n & (newcAlign - 1))
}

// end checks the trailer and that only zeros follow it.
func (r *Reader) end(h newcHeader) error {
	if h[fieldSize] != 0 {
		return errors.New("read cpio: the trailer has content")
	}
	buf := make([]byte, 4096)
	for {
		n, err := r.r.Read(buf)
		if bytes.ContainsFunc(buf[:n], func(c rune) bool { return c != 0 }) {
			return errors.New("read cpio: data after the trailer")
		}
		if err == io.EOF {
			return io.EOF
		}
		if err != nil {
			return fmt.Errorf("read cpio: %w", err)
		}
	}
}

func (r *Reader) full(buf []byte) error {
	n, err := io.ReadFull(r.r, buf)
	r.n += int64(n)
	return noEOF(err)
}

func (r *Reader) discard(n int64) error {
	got, err := io.CopyN(io.Discard, r.r, n)
	r.n += got
	return noEOF(err)
}

// noEOF turns an end of input, which only the trailer may announce, into an error of its own.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
