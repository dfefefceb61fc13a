// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/sign"
	"github.com/cloister-cc/cloister/image/store"
	"github.com/cloister-cc/cloister/keys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// arch is not this machine's, so that a default cannot hide.
const arch = "s390x"

// keyURI names the key of the tests' encrypted layers.
const keyURI = "kbs:///default/image-key/test"

// needRoot skips a test that unpacks layers; where all tests are to run it must not.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_QEMU") == "1" {
		t.Fatal("layers are unpacked with the rights of root")
	}
	t.Skip("layers are unpacked with the rights of root")
}

// tarball makes a layer of files.
func tarball(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func compress(t testing.TB, kind string, data []byte) (mediaType string, _ []byte) {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch kind {
	case "gzip":
		w, mediaType = gzip.NewWriter(&buf), ocispec.MediaTypeImageLayerGzip
	case "zstd":
		zw, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		w, mediaType = zw, ocispec.MediaTypeImageLayerZstd
	default:
		return ocispec.MediaTypeImageLayer, data
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return mediaType, buf.Bytes()
}

// encrypt encrypts a layer for keyURI.
func encrypt(t testing.TB, mediaType string, data, key []byte) (string, []byte, map[string]string) {
	t.Helper()
	r, finish, err := imagecrypt.EncryptLayer(bytes.NewReader(data), digest.FromBytes(data),
		[]imagecrypt.Recipient{{KeyURI: keyURI, Key: keys.NewSecret(bytes.Clone(key))}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	annotations, err := finish()
	if err != nil {
		t.Fatal(err)
	}
	return mediaType + "+encrypted", out, annotations
}

// built is a layer in a registry.
type built struct {
	desc   ocispec.Descriptor
	diffID digest.Digest
	blob   []byte
}

// build puts a layer into a registry; key nil means plain.
func build(t testing.TB, r *registrytest.Registry, kind string, plain, key []byte) built {
	t.Helper()
	mediaType, blob := compress(t, kind, plain)
	var annotations map[string]string
	if key != nil {
		mediaType, blob, annotations = encrypt(t, mediaType, blob, key)
	}
	desc := r.AddBlob(mediaType, blob)
	desc.Annotations = annotations
	return built{desc, digest.FromBytes(plain), blob}
}

func addImage(t testing.TB, r *registrytest.Registry, tag string, layers ...built) ocispec.Descriptor {
	t.Helper()
	var descs []ocispec.Descriptor
	var diffIDs []digest.Digest
	for _, l := range layers {
		descs, diffIDs = append(descs, l.desc), append(diffIDs, l.diffID)
	}
	return r.AddImage(t, tag, arch, descs, diffIDs)
}

// keyring is a key source of one key.
func keyring(key []byte) func(context.Context, string) ([]byte, error) {
	return func(_ context.Context, uri string) ([]byte, error) {
		if uri != keyURI || key == nil {
			return nil, ErrNoKey
		}
		return bytes.Clone(key), nil
	}
}

// mounts records mounts instead of making them.
type mounts struct {
	mu      sync.Mutex
	targets map[string][]string // lower folders by target, topmost first
	fail    error
}

func (m *mounts) calls() store.Mounts {
	return store.Mounts{
		Overlay: func(target string, lower []string, _, _ string) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.fail != nil {
				return m.fail
			}
			if m.targets == nil {
				m.targets = make(map[string][]string)
			}
			m.targets[target] = lower
			return nil
		},
		Unmount: func(target string) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			delete(m.targets, target)
			return nil
		},
	}
}

// read returns a file as the topmost of a target's layers has it.
func (m *mounts) read(t *testing.T, target, name string) string {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, lower := range m.targets[target] {
		if data, err := os.ReadFile(filepath.Join(lower, name)); err == nil {
			return string(data)
		}
	}
	t.Errorf("%s is in none of the layers %v", name, m.targets[target])
	return ""
}

// accept is the policy that allows every image.
func accept(t testing.TB) *sign.Policy {
	t.Helper()
	return policy(t, `{"default":[{"type":"insecureAcceptAnything"}]}`)
}

func policy(t testing.TB, json string) *sign.Policy {
	t.Helper()
	p, err := sign.New(sign.Config{Policy: []byte(json)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// mount is Service.Mount for who does not want the digest.
func mount(ctx context.Context, s *Service, containerID, reference, target string) error {
	_, err := s.Mount(ctx, containerID, reference, target)
	return err
}

// service makes a service for a registry whose mounts are recorded.
func service(t *testing.T, r *registrytest.Registry, change func(*Config)) (*Service, *mounts) {
	t.Helper()
	m := new(mounts)
	c := Config{Root: filepath.Join(t.TempDir(), "images"), CA: r.CA(), Arch: arch, Mounts: m.calls(), Policy: accept(t), Retry: registry.Retry{Base: time.Millisecond, Max: 2 * time.Millisecond}}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, m
}

// stored lists the layers that can be seen, and whatever is left of others.
func stored(t *testing.T, s *Service) (layers, staging []string) {
	t.Helper()
	var err error
	if layers, err = filepath.Glob(filepath.Join(s.config.Root, "layers", "*", "*")); err != nil {
		t.Fatal(err)
	}
	if staging, err = filepath.Glob(filepath.Join(s.config.Root, "staging", "*")); err != nil {
		t.Fatal(err)
	}
	links, err := filepath.Glob(filepath.Join(s.config.Root, "l", "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != len(layers) {
		t.Errorf("%d links for %d layers", len(links), len(layers))
	}
	return layers, staging
}

// contains fails unless err has all the texts.
func contains(t *testing.T, err error, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v, want %q", err, text)
		}
	}
}

// waiting says whether n callers wait for an image.
func waiting(s *Service, n int) bool {
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	for _, fl := range s.pulls.byID {
		return fl.waiters == n
	}
	return n == 0
}
