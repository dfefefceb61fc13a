// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// rawEntry returns an archive entry with full control over what matters to the reader.
func rawEntry(name string, mode, size uint32, content string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "070701%08X%08X%032X%08X%032X%08X%08X%s\x00", 1, mode, 0, size, 0, len(name)+1, 0, name)
	b.Write(make([]byte, -b.Len()&3))
	b.WriteString(content)
	b.Write(make([]byte, -b.Len()&3))
	return b.Bytes()
}

func TestReaderRefuses(t *testing.T) {
	t.Parallel()
	trailer := rawEntry(trailerName, 0, 0, "")
	file := rawEntry("a", typeRegular|0o644, 3, "abc")
	with := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	patch := func(b []byte, at int, s string) []byte {
		return append(append(bytes.Clone(b[:at]), s...), b[at+len(s):]...)
	}
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"empty":                {nil, "unexpected EOF"},
		"no trailer":           {file, "unexpected EOF"},
		"cut in content":       {file[:len(file)-4], "unexpected EOF"},
		"cut in header":        {file[:50], "unexpected EOF"},
		"cut in name":          {file[:newcHeaderSize+1], "unexpected EOF"},
		"old format":           {with(patch(file, 0, "070707"), trailer), "not that of the newc format"},
		"with checksums":       {with(patch(file, 0, "070702"), trailer), "not that of the newc format"},
		"no digit":             {with(patch(file, 20, "g"), trailer), "field 1"},
		"sign":                 {with(patch(file, 54, "-0000003"), trailer), "field 6"},
		"after trailer":        {with(file, trailer, make([]byte, 700), []byte("x")), "data after the trailer"},
		"second archive":       {with(file, trailer, file, trailer), "data after the trailer"},
		"trailer with content": {rawEntry(trailerName, 0, 4, "abcd"), "trailer has content"},
		"name without NUL":     {with(patch(file, newcHeaderSize, "ab"), trailer), "only NUL"},
		"name with NUL":        {with(rawEntry("a\x00b", typeRegular, 0, ""), trailer), "only NUL"},
		"empty name":           {with(rawEntry("", typeRegular, 0, ""), trailer), "size 1"},
		"huge name":            {with(patch(file, 94, "FFFFFFFF"), trailer), "size 4294967295"},
		"leaves the root":      {with(rawEntry("../a", typeRegular, 0, ""), trailer), "not clean"},
		"not clean":            {with(rawEntry("a//b", typeRegular, 0, ""), trailer), "not clean"},
		"root":                 {with(rawEntry("/", typeDir|0o755, 0, ""), trailer), "not clean"},
		"set-uid":              {with(rawEntry("a", typeRegular|0o4755, 0, ""), trailer), "bits other than"},
		"block device":         {with(rawEntry("a", 0o060600, 0, ""), trailer), "is not supported"},
		"no type":              {with(rawEntry("a", 0o644, 0, ""), trailer), "is not supported"},
		"folder with content":  {with(rawEntry("a", typeDir|0o755, 4, "abcd"), trailer), "4 bytes of content"},
		"empty link":           {with(rawEntry("a", typeSymlink|0o777, 0, ""), trailer), "link of 0 bytes"},
		"huge link":            {with(rawEntry("a", typeSymlink|0o777, 1<<31, ""), trailer), "link of 2147483648 bytes"},
		"link with NUL":        {with(rawEntry("a", typeSymlink|0o777, 4, "b\x00cd"), trailer), "link with a NUL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := NewReader(bytes.NewReader(tc.data))
			err := drain(r)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want one with %q", err, tc.want)
			}
			if _, again := r.Next(); !errors.Is(again, err) {
				t.Errorf("error %v at the next call, want the same", again)
			}
		})
	}
}

// drain reads all entries and their contents; the end of a sound archive is no error.
func drain(r *Reader) error {
	for {
		if _, err := r.Next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
}

func TestReaderSkips(t *testing.T) {
	t.Parallel()
	data := append(rawEntry("a", typeRegular, 5, "hello"), rawEntry("b", typeRegular, 2, "hi")...)
	r := NewReader(bytes.NewReader(append(data, rawEntry(trailerName, 0, 0, "")...)))
	for range 2 { // without reading the first one's content
		_, err := r.Next()
		must(t, err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "hi" {
		t.Errorf("content %q, error %v", got, err)
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("error %v, want io.EOF", err)
	}
}

func TestImageReaderRefuses(t *testing.T) {
	t.Parallel()
	z, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(true))
	must(t, err)
	good := z.EncodeAll(archive(t, smallTree(t)), nil)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for name, data := range map[string][]byte{
		"empty": nil, "cut": good[:len(good)/2], "bad checksum": flipped, "magic alone": zstdMagic[:], "gzip": {0x1f, 0x8b, 8, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if m, err := Inspect(bytes.NewReader(data), nil); err == nil {
				t.Errorf("no error, but %v", m)
			}
		})
	}
	if _, err := Inspect(bytes.NewReader(good), nil); err != nil {
		t.Error(err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(archive(f, smallTree(f)))
	f.Add(append(rawEntry("a", typeRegular, 3, "abc"), rawEntry(trailerName, 0, 0, "")...))
	f.Add(rawEntry("../a", typeSymlink|0o777, 4, "abcd"))
	f.Add([]byte("070701"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data))
		again := &Tree{}
		for {
			e, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return
			}
			if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || e.Path == "/" {
				t.Fatalf("path %q", e.Path)
			}
			content, err := io.ReadAll(r)
			if err != nil {
				return
			}
			if int64(len(content)) != e.Size {
				t.Fatalf("%d bytes of content, the entry says %d", len(content), e.Size)
			}
			if e.Mode.Type() != 0 {
				content = nil
			}
			f := File{Path: e.Path, Mode: e.Mode, Data: content, Target: e.Target, Major: e.Major, Minor: e.Minor}
			if again.Add(f) != nil {
				return // twice the same path
			}
		}
		if len(data) > 0 && len(again.files) == 0 {
			return
		}
		if b := new(bytes.Buffer); again.Write(t.Context(), b) == nil {
			if err := drain(NewReader(b)); err != nil {
				t.Fatalf("what was read and written again does not read: %v", err)
			}
		}
	})
}
