// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package leakscan

import (
	"fmt"
	"slices"
	"sync"
)

// Limits of a search. What they leave out is reported.
const (
	// MaxDepth is how deep streams are followed into each other.
	MaxDepth = 4
	// maxInflated bounds what all streams of one artefact hold, in bytes.
	maxInflated = 64 << 30
	// maxChildren bounds the streams of one source that are followed at the same time.
	maxChildren = 256
	// maxHits bounds the findings of one artefact that are described.
	maxHits = 1000
)

// Hit is one finding. It never holds the secret.
type Hit struct {
	Secret   string `json:"secret"`
	Encoding string `json:"encoding"`
	// Where is the file, the TCP stream in it, and the compressed streams with their offsets, outermost first.
	Where string `json:"where"`
	// Offset is where in the innermost it begins, in bytes.
	Offset int64 `json:"offset"`
}

// findings collects what the search of one artefact found.
type findings struct {
	known []string // secrets that are expected

	mu       sync.Mutex
	hits     []Hit
	leaks    int // findings but those that are expected
	expected int
	inflated int64
	skipped  []string
}

func (f *findings) add(h Hit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.known, h.Secret) {
		f.expected++
	} else {
		f.leaks++
	}
	if len(f.hits) < maxHits {
		f.hits = append(f.hits, h)
	}
}

// skip notes something that was not searched; each once.
func (f *findings) skip(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.skipped) < maxHits && !slices.Contains(f.skipped, what) {
		f.skipped = append(f.skipped, what)
	}
}

// inflate counts decompressed bytes; ok is false once there are too many.
func (f *findings) inflate(n int) (ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inflated += int64(n)
	return f.inflated <= maxInflated
}

// scanner searches one source, which is written to it in pieces of any size.
type scanner struct {
	m        *matcher
	found    *findings
	where    string
	depth    int
	buf      []byte // what a pattern may have begun in
	offset   int64  // of buf
	children []*stream
}

func newScanner(m *matcher, found *findings, where string, depth int) *scanner {
	return &scanner{m: m, found: found, where: where, depth: depth}
}

// window is how much is searched in one go, in bytes. The longest pattern, a secret in hexadecimal, has half of that.
const window = 4 * MaxSecret

// Write searches more of the source. It never fails.
func (s *scanner) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), window-len(s.buf))
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
		if len(s.buf) == window {
			s.search(window - s.m.longest + 1)
		}
	}
	return total, nil
}

// Close searches the rest and waits for the streams in the source.
func (s *scanner) Close() {
	s.search(len(s.buf))
	for _, c := range s.children {
		c.end()
	}
	s.children = nil
}

// search looks for what begins before end in the buffer, and lets go of that part.
func (s *scanner) search(end int) {
	fed := 0 // how much the streams have got
	s.m.scan(s.buf, end, func(at int, p *pattern, mark string) {
		if p != nil {
			s.found.add(Hit{Secret: p.secret, Encoding: p.encoding, Where: s.where, Offset: s.offset + int64(at)})
			return
		}
		s.feed(s.buf[fed:at])
		fed = at
		s.follow(marks[mark], s.offset+int64(at))
	})
	s.feed(s.buf[fed:end])
	s.offset += int64(end)
	s.buf = append(s.buf[:0], s.buf[end:]...)
}

// feed gives more data to the streams; those that have ended are let go.
func (s *scanner) feed(data []byte) {
	if len(data) == 0 {
		return
	}
	s.children = slices.DeleteFunc(s.children, func(c *stream) bool { return !c.feed(data) })
}

// follow begins a stream at the place that feed has come to.
func (s *scanner) follow(kind string, at int64) {
	where := fmt.Sprintf("%s > %s@%d", s.where, kind, at)
	if len(s.children) == maxChildren {
		s.found.skip(where + ": too many streams at the same time")
		return
	}
	s.children = append(s.children, newStream(s, kind, where))
}
