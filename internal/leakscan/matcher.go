// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package leakscan

import "bytes"

// Marks at the start of compressed streams.
const (
	gzipMark = "\x1f\x8b\x08"
	zstdMark = "\x28\xb5\x2f\xfd"
)

// marks are the kinds of streams by their marks.
var marks = map[string]string{gzipMark: "gzip", zstdMark: "zstd"}

// matcher finds all patterns in one pass: the first two bytes decide where it looks closer.
type matcher struct {
	patterns []pattern
	bits     [1 << 16 / 64]uint64
	by       map[uint16][]int // indices into patterns; below 0 are marks
	markList []string
	longest  int
}

func newMatcher(patterns []pattern) *matcher {
	m := &matcher{patterns: patterns, by: make(map[uint16][]int)}
	add := func(s string, index int) {
		key := uint16(s[0])<<8 | uint16(s[1])
		m.bits[key>>6] |= 1 << (key & 63)
		m.by[key] = append(m.by[key], index)
		m.longest = max(m.longest, len(s))
	}
	for i, p := range patterns {
		add(p.bytes, i)
	}
	for mark := range marks {
		m.markList = append(m.markList, mark)
		add(mark, -len(m.markList))
	}
	return m
}

// scan calls found for each place before end where a pattern or mark begins. Those that begin later, or go on beyond
// data, are for the next call.
func (m *matcher) scan(data []byte, end int, found func(at int, p *pattern, mark string)) {
	for at := 0; at < end && at+1 < len(data); at++ {
		key := uint16(data[at])<<8 | uint16(data[at+1])
		if m.bits[key>>6]&(1<<(key&63)) == 0 {
			continue
		}
		for _, i := range m.by[key] {
			if i >= 0 {
				if p := &m.patterns[i]; hasPrefix(data[at:], p.bytes) {
					found(at, p, "")
				}
			} else if mark := m.markList[-i-1]; hasPrefix(data[at:], mark) {
				found(at, nil, mark)
			}
		}
	}
}

func hasPrefix(data []byte, s string) bool {
	return len(data) >= len(s) && bytes.Equal(data[:len(s)], []byte(s))
}
