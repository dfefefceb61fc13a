// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package leakscan

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// random returns bytes that are the same in every run.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func canary() Secret { return Secret{Name: "canary", Value: random(1, 32)} }

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstdCompressed(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// search returns the findings in data that is written in pieces of a size.
func search(t testing.TB, data []byte, piece int, secrets ...Secret) *findings {
	t.Helper()
	p, err := patterns(secrets)
	if err != nil {
		t.Fatal(err)
	}
	f := &findings{}
	s := newScanner(newMatcher(p), f, "data", 0)
	for c := range slices.Chunk(data, piece) {
		if n, err := s.Write(c); n != len(c) || err != nil {
			t.Fatalf("wrote %d of %d: %v", n, len(c), err)
		}
	}
	s.Close()
	return f
}

func forms(secret []byte) map[string][]byte {
	digits := hex.EncodeToString(secret)
	out := map[string][]byte{"raw": secret, "hex": []byte(digits), "HEX": []byte(strings.ToUpper(digits))}
	for shift := range 3 {
		whole := append(append([]byte("xyz")[:shift:shift], secret...), "tail"...)
		out[fmt.Sprint("base64 ", shift)] = []byte(base64.StdEncoding.EncodeToString(whole))
		out[fmt.Sprint("base64url ", shift)] = []byte(base64.RawURLEncoding.EncodeToString(whole))
		out[fmt.Sprint("base64 at the end ", shift)] = []byte(base64.StdEncoding.EncodeToString(whole[:shift+len(secret)]))
	}
	return out
}

func TestEncodings(t *testing.T) {
	t.Parallel()
	for _, size := range []int{16, 17, 18, 32, 64, 1000} {
		secret := Secret{Name: "canary", Value: random(9, size)}
		for form, text := range forms(secret.Value) {
			data := slices.Concat(random(2, 5000), text, random(3, 5000))
			f := search(t, data, 777, secret)
			if f.leaks != 1 {
				t.Errorf("%s of %d bytes: %d findings %v", form, size, f.leaks, f.hits)
			}
		}
	}
}

// A secret is found wherever it lies to the borders of what is searched at once.
func TestBorders(t *testing.T) {
	t.Parallel()
	secret := canary()
	data := random(4, 3*window)
	for _, border := range []int{0, window, 2 * window} {
		for shift := -len(secret.Value) - 2; shift <= 2; shift++ {
			at := border + shift
			if at < 0 {
				continue
			}
			in := slices.Clone(data)
			copy(in[at:], secret.Value)
			if f := search(t, in, 100_000, secret); f.leaks != 1 || f.hits[0].Offset != int64(at) {
				t.Errorf("at %d: %v", at, f.hits)
			}
		}
	}
	in := append(random(4, 1000), secret.Value...)
	for piece := 1; piece < 50; piece++ {
		if f := search(t, in, piece, secret); f.leaks != 1 {
			t.Errorf("in pieces of %d: %v", piece, f.hits)
		}
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	secret := canary()
	plain := slices.Concat(random(5, 300_000), secret.Value, bytes.Repeat([]byte("text "), 100_000))
	noise := random(6, 10_000)
	for name, data := range map[string][]byte{
		"gzip":            gzipped(t, plain),
		"zstd":            zstdCompressed(t, plain),
		"in the middle":   slices.Concat(noise, gzipped(t, plain), noise),
		"gzip in zstd":    zstdCompressed(t, slices.Concat(noise, gzipped(t, plain))),
		"second member":   slices.Concat(gzipped(t, noise), gzipped(t, plain)),
		"second frame":    slices.Concat(zstdCompressed(t, noise), zstdCompressed(t, plain)),
		"cut off":         slices.Concat(gzipped(t, slices.Concat(plain, random(7, 1<<20)))[:400_000]),
		"after a decoy":   slices.Concat([]byte(gzipMark), noise, []byte(zstdMark), noise, gzipped(t, plain)),
		"many decoys":     slices.Concat(bytes.Repeat([]byte(gzipMark), 100), gzipped(t, plain)),
		"hex in gzip":     gzipped(t, []byte(hex.EncodeToString(secret.Value))),
		"four deep":       gzipped(t, gzipped(t, gzipped(t, gzipped(t, plain)))),
		"stored in layer": gzipped(t, slices.Concat(noise, plain, noise)),
	} {
		f := search(t, data, 4096, secret)
		if f.leaks < 1 {
			t.Errorf("%s: nothing found, skipped %v", name, f.skipped)
			continue
		}
		if !slices.ContainsFunc(f.hits, func(h Hit) bool { return strings.Contains(h.Where, " > ") }) {
			t.Errorf("%s: found only %v", name, f.hits)
		}
	}
	decoys := bytes.Repeat([]byte(gzipMark), maxChildren+1)
	if f := search(t, decoys, 4096, secret); len(f.skipped) == 0 {
		t.Error("nothing says that streams were left out")
	}
	five := gzipped(t, gzipped(t, gzipped(t, gzipped(t, gzipped(t, plain)))))
	if f := search(t, five, 4096, secret); f.leaks != 0 || len(f.skipped) == 0 || !strings.Contains(f.skipped[0], "nested too deep") {
		t.Errorf("five deep: %v, skipped %v", f.hits, f.skipped)
	}
}

func TestNothingFound(t *testing.T) {
	t.Parallel()
	data := slices.Concat(random(8, 1<<20), gzipped(t, random(9, 1<<20)))
	if f := search(t, data, 5000, canary(), Secret{Name: "key", Value: random(10, 64)}); f.leaks != 0 || len(f.skipped) != 0 {
		t.Errorf("found %v, skipped %v", f.hits, f.skipped)
	}
}

func TestSecretsRefused(t *testing.T) {
	t.Parallel()
	for name, s := range map[string][]Secret{
		"none": nil, "short": {{"a", random(1, 15)}}, "long": {{"a", random(1, MaxSecret+1)}}, "no name": {{"", random(1, 32)}},
		"zeros": {{"a", make([]byte, 32)}}, "few bytes": {{"a", bytes.Repeat([]byte("abcdefg"), 5)}}, "twice": {canary(), canary()},
	} {
		if _, err := patterns(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestScan(t *testing.T) {
	t.Parallel()
	secret := canary()
	clean, dirty := write(t, "clean", random(11, 1<<20)), write(t, "dirty", slices.Concat(random(12, 1000), secret.Value))
	folder := filepath.Dir(dirty)
	if err := os.Symlink("/nowhere", filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	empty := write(t, "empty", nil)
	for name, tc := range map[string]struct {
		artefact      Artefact
		leaked, blind bool
	}{
		"clean":         {Artefact{Paths: []string{clean}, Control: []string{dirty}}, false, false},
		"leak":          {Artefact{Paths: []string{folder}, Control: []string{dirty}}, true, false},
		"known":         {Artefact{Paths: []string{dirty}, Control: []string{dirty}, Known: []string{"canary"}}, false, false},
		"no control":    {Artefact{Paths: []string{clean}}, false, true},
		"blind control": {Artefact{Paths: []string{clean}, Control: []string{clean}}, false, true},
		"empty":         {Artefact{Paths: []string{empty}, Control: []string{dirty}}, false, true},
		"not searched":  {Artefact{Paths: []string{write(t, "pcap", []byte("\xa1\xb2\xc3\xd4 no capture"))}, Control: []string{dirty}}, false, true},
	} {
		r, err := Scan(t.Context(), []Secret{secret}, []Artefact{tc.artefact})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.Leaked != tc.leaked || r.Blind != tc.blind {
			t.Errorf("%s: %+v", name, r)
		}
		var b bytes.Buffer
		if err := r.Print(&b); err != nil || bytes.Contains(b.Bytes(), secret.Value) || bytes.Contains(b.Bytes(), []byte(hex.EncodeToString(secret.Value))) {
			t.Errorf("%s: printed %q, %v", name, b.Bytes(), err)
		}
	}
	for name, paths := range map[string][]string{"missing": {"/nowhere"}, "device": {"/dev/null"}} {
		if _, err := Scan(t.Context(), []Secret{secret}, []Artefact{{Name: "a", Paths: paths}}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(cancelled, []Secret{secret}, []Artefact{{Name: "a", Paths: []string{clean}}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// packet is an Ethernet frame with a TCP segment.
func packet(port uint16, seq uint32, flags byte, data []byte) []byte {
	ip := make([]byte, 20)
	ip[0], ip[9] = 0x45, protocolTCP
	binary.BigEndian.PutUint16(ip[2:], uint16(40+len(data)))
	copy(ip[12:], []byte{10, 0, 2, 15, 10, 0, 2, 2})
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, port)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13] = 0x50, flags
	frame := append(make([]byte, 12), 8, 0)
	return slices.Concat(frame, ip, tcp, data, make([]byte, 6)) // padded, as short frames are
}

func capture(packets ...[]byte) []byte {
	out := make([]byte, pcapHeader)
	binary.LittleEndian.PutUint32(out, 0xa1b2c3d4)
	binary.LittleEndian.PutUint32(out[20:], linkEthernet)
	for _, p := range packets {
		record := make([]byte, pcapRecord)
		binary.LittleEndian.PutUint32(record[8:], uint32(len(p)))
		out = append(append(out, record...), p...)
	}
	return out
}

// A secret that is split over segments, which come out of order, twice and wrapped around, is found in its connection.
func TestCapture(t *testing.T) {
	t.Parallel()
	secret := canary()
	stream := slices.Concat(random(13, 100), secret.Value, random(14, 100))
	const start = 1<<32 - 110 // wraps inside the secret
	part := func(from, to int) []byte { return packet(1000, start+1+uint32(from), 0x10, stream[from:to]) }
	data := capture(
		packet(1000, start, 2, nil), part(0, 105), packet(2000, 7, 0x10, random(15, 50)), part(120, 232), part(105, 120), part(100, 125),
	)
	r, err := Scan(t.Context(), []Secret{secret}, []Artefact{{Name: "net", Paths: []string{write(t, "net.pcap", data)}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Results[0].Found) != 1 || !strings.Contains(r.Results[0].Found[0].Where, "tcp 10.0.2.15:1000 to 10.0.2.2:0") || r.Results[0].Found[0].Offset != 100 {
		t.Errorf("found %+v", r.Results[0])
	}
	if r, err = Scan(t.Context(), []Secret{secret}, []Artefact{{Name: "net", Paths: []string{write(t, "cut.pcap", data[:len(data)-3])}}}); err != nil || r.Results[0].Hits != 1 {
		t.Errorf("cut off: %+v, %v", r, err)
	}
}

func FuzzFlows(f *testing.F) {
	f.Add(capture(packet(1, 2, 2, nil), packet(1, 3, 16, []byte("data"))))
	f.Add(capture()[:10])
	f.Fuzz(func(t *testing.T, data []byte) {
		flows, err := tcpFlows(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, segments := range flows {
			for _, s := range inOrder(segments) {
				if s.size <= 0 || s.offset < 0 || s.offset+int64(s.size) > int64(len(data)) {
					t.Errorf("segment %+v in %d bytes", s, len(data))
				}
			}
		}
	})
}

// The scanner finds what a plain search finds, however the data comes.
func FuzzScanner(f *testing.F) {
	secret := canary()
	f.Add(secret.Value, 1)
	f.Add([]byte(hex.EncodeToString(secret.Value)+"\x1f\x8b\x08"), 7)
	f.Add(gzipped(f, secret.Value), 3)
	f.Add(zstdCompressed(f, secret.Value), 64)
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		if piece < 1 || piece > 1<<20 {
			return
		}
		want := false
		for _, form := range secret.forms() {
			want = want || bytes.Contains(data, []byte(form.bytes))
		}
		if got := search(t, data, piece, secret); want && got.leaks == 0 {
			t.Errorf("%x: nothing found", data)
		}
	})
}

func BenchmarkScanner(b *testing.B) {
	data := random(20, 8<<20)
	p, err := patterns([]Secret{canary(), {Name: "key", Value: random(21, 64)}, {Name: "other", Value: random(22, 32)}})
	if err != nil {
		b.Fatal(err)
	}
	m := newMatcher(p)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		s := newScanner(m, &findings{}, "data", 0)
		_, _ = s.Write(data)
		s.Close()
	}
}
