// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The image of the tests.
const (
	testRepo  = "registry.example/team/app"
	testRef   = testRepo + ":v1"
	testStore = "https://signatures.example/base"

	testLookaside = "default-docker: {lookaside: " + testStore + "}\n"
)

// testManifest stands for an image's manifest; what is in one does not matter here.
var testManifest = []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`)

func testDigest() digest.Digest { return digest.FromBytes(testManifest) }

// fakeSource has content by its reference or URL. It knows the manifest of the test image.
type fakeSource struct {
	content map[string][]byte
	// fails has errors, endless names what never ends.
	fails   map[string]error
	endless map[string]bool

	mu       sync.Mutex
	requests []string
	open     int
}

func newSource() *fakeSource {
	return &fakeSource{
		content: map[string][]byte{testRepo + "@" + testDigest().String(): testManifest},
		fails:   map[string]error{}, endless: map[string]bool{},
	}
}

func (s *fakeSource) Manifest(_ context.Context, ref string) (io.ReadCloser, error) {
	return s.get(ref)
}

func (s *fakeSource) Blob(_ context.Context, ref string, _ int64) (io.ReadCloser, error) {
	return s.get(ref)
}

func (s *fakeSource) Lookaside(_ context.Context, url string) (io.ReadCloser, error) {
	return s.get(url)
}

func (s *fakeSource) get(name string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, name)
	if err := s.fails[name]; err != nil {
		return nil, err
	}
	data, ok := s.content[name]
	if !ok && !s.endless[name] {
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	s.open++
	if s.endless[name] {
		return &body{Reader: zeros{}, source: s}, nil
	}
	return &body{Reader: bytes.NewReader(data), source: s}, nil
}

// body counts those that are not closed.
type body struct {
	io.Reader
	source *fakeSource
}

func (b *body) Close() error {
	b.source.mu.Lock()
	defer b.source.mu.Unlock()
	b.source.open--
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// outcome compares what Check returned with what is wanted: "" for allowed, "reject: " and a part of the reason, or a
// part of another error.
func outcome(t *testing.T, err error, want string) {
	t.Helper()
	reason, rejected := strings.CutPrefix(want, "reject: ")
	switch {
	case want == "" && err == nil:
	case want == "" || err == nil:
		t.Errorf("got %v, want %q", err, want)
	case errors.Is(err, ErrRejected) != rejected || !strings.Contains(err.Error(), reason):
		t.Errorf("got %v (a rejection: %t), want %q", err, errors.Is(err, ErrRejected), want)
	}
}

// load returns a policy, with the test's lookaside store and folder.
func load(t *testing.T, policy string, keys map[string][]byte) *Policy {
	t.Helper()
	p, err := New(Config{Policy: []byte(policy), Keys: keys, Lookaside: []byte(testLookaside), TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}
