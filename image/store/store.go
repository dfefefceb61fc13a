// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Layer is a verified layer.
type Layer struct {
	// Blob is the digest of the layer as the registry has it.
	Blob digest.Digest
	// DiffID is the digest of its uncompressed tar.
	DiffID digest.Digest
	// Encrypted says that the registry has the layer only encrypted.
	Encrypted bool

	link string // the layer's folder, by its short name
}

// Store is a folder of layers. It may be used from many goroutines.
type Store struct {
	root   string
	mounts Mounts

	mu         sync.Mutex
	next       uint64
	layers     map[digest.Digest]Layer
	containers map[string]*container
}

// Folders below the root.
const (
	layersDir     = "layers"
	linksDir      = "l"
	stagingDir    = "staging"
	containersDir = "containers"
)

// Open makes an empty store in a folder, which it creates. The folder's path is absolute and has neither "," nor ":"
// nor "\", which have a meaning in overlayfs' options. Zero Mounts are the kernel's.
func Open(root string, mounts Mounts) (*Store, error) {
	if !filepath.IsAbs(root) || strings.ContainsAny(root, ",:\\") {
		return nil, fmt.Errorf("image store folder %q is not absolute or has one of , : \\ in it", root)
	}
	s := &Store{
		root: filepath.Clean(root), mounts: mounts.withDefaults(),
		layers: make(map[digest.Digest]Layer), containers: make(map[string]*container),
	}
	for _, dir := range []string{"", layersDir, linksDir, stagingDir, containersDir} {
		p := filepath.Join(s.root, dir)
		if dir != "" {
			if err := os.RemoveAll(p); err != nil {
				return nil, fmt.Errorf("clear image store: %w", err)
			}
		}
		if err := os.MkdirAll(p, 0o700); err != nil {
			return nil, fmt.Errorf("create image store: %w", err)
		}
	}
	return s, nil
}

// Layer returns the layer of a blob digest, if it is there.
func (s *Store) Layer(blob digest.Digest) (Layer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.layers[blob]
	return l, ok
}

func (s *Store) number() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	return strconv.FormatUint(s.next, 36)
}

// Staging is the folder of a layer that is not verified yet.
type Staging struct {
	store *Store
	dir   string
}

// NewStaging makes an empty folder, mode 0755, for a layer. The caller ends it with Commit or Discard.
func (s *Store) NewStaging() (*Staging, error) {
	dir := filepath.Join(s.root, stagingDir, s.number())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create staging folder: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the root folder of a container
		return nil, errors.Join(fmt.Errorf("create staging folder: %w", err), os.Remove(dir))
	}
	return &Staging{store: s, dir: dir}, nil
}

// Dir returns the folder's path.
func (t *Staging) Dir() string { return t.dir }

// Discard removes the folder and all that is in it. After Commit it does nothing.
func (t *Staging) Discard() error {
	if t.dir == "" {
		return nil
	}
	if err := os.RemoveAll(t.dir); err != nil {
		return fmt.Errorf("remove staging folder: %w", err)
	}
	t.dir = ""
	return nil
}

// Commit makes the folder the layer l, all of which the caller has verified. If somebody else was faster with the same
// layer, that one stays and is returned; one of the same blob that differs otherwise is an error. On error the folder
// is still there for Discard.
func (t *Staging) Commit(l Layer) (Layer, error) {
	s := t.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, ok := s.layers[l.Blob]; ok {
		if have.DiffID != l.DiffID || have.Encrypted != l.Encrypted {
			return Layer{}, fmt.Errorf("layer %s is here already as another one", l.Blob)
		}
		return have, t.Discard()
	}
	name := filepath.Join(layersDir, l.Blob.Algorithm().String(), l.Blob.Encoded())
	path := filepath.Join(s.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	s.next++
	l.link = filepath.Join(s.root, linksDir, strconv.FormatUint(s.next, 36))
	if err := os.Symlink(filepath.Join("..", name), l.link); err != nil {
		return Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	if err := os.Rename(t.dir, path); err != nil {
		return Layer{}, errors.Join(fmt.Errorf("commit layer: %w", err), os.Remove(l.link))
	}
	t.dir = ""
	s.layers[l.Blob] = l
	return l, nil
}
