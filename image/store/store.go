// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package store

import (
	"errors"
	"fmt"
	"io/fs"
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
	// Opaque says that the layer hides every layer below it.
	Opaque bool
	// Size is about how many bytes the layer takes in the store.
	Size int64

	link string // the layer's folder, by its short name
}

// same tells whether two layers are the same content, told from the same blob.
func (l Layer) same(o Layer) bool {
	return l.Blob == o.Blob && l.DiffID == o.DiffID && l.Encrypted == o.Encrypted
}

// Config is what a Store needs.
type Config struct {
	// Root is the store's folder, which Open creates. Its path is absolute and has neither "," nor ":" nor "\", which have
	// a meaning in overlayfs' options.
	Root string
	// Mounts are the kernel's mount calls; zero fields mean the real ones.
	Mounts Mounts
	// Keep says that Open keeps the layers that are in Root; else it empties the store. What is found there is believed:
	// only for a folder that nobody but this guest can have written to, such as a tmpfs or a disk with a key or integrity
	// tags that end with the guest.
	Keep bool
	// Budget is how many bytes layers may take that no container uses, together with those that some do; above it, unused
	// ones are removed. 0 means as many as there is space for.
	Budget int64
	// Reserve is how many bytes Ensure leaves free besides what it is asked for, default 64 MiB, but not more than 1/16 of
	// the file system: containers write there, too.
	Reserve int64
	// Statfs tells the space of a folder's file system; nil means the kernel.
	Statfs func(dir string) (Space, error)
}

// DefaultReserve is Config.Reserve's default.
const DefaultReserve = 64 << 20

// Store is a folder of layers. It may be used from many goroutines.
type Store struct {
	root    string
	mounts  Mounts
	keep    bool
	budget  int64
	reserve int64
	statfs  func(dir string) (Space, error)
	lock    *os.File // nil: not kept
	// step is called before each change to the disk; tests stop the process there, or make the change fail.
	step func(name string) error

	mu         sync.Mutex
	next       uint64
	uses       uint64 // counts ends of use
	layers     map[digest.Digest]*entry
	containers map[string]*container
}

// entry is a layer in the store. Its fields are guarded by the store's mutex.
type entry struct {
	layer Layer
	holds int
	used  uint64 // Store.uses when it was last in use
}

// Folders below the root.
const (
	layersDir     = "layers"
	linksDir      = "l"
	stagingDir    = "staging"
	containersDir = "containers"
	recordsDir    = "records"
	lockFile      = "lock"
)

// Open opens the store in a folder. The caller closes it.
func Open(c Config) (*Store, error) {
	if !filepath.IsAbs(c.Root) || strings.ContainsAny(c.Root, ",:\\") {
		return nil, fmt.Errorf("image store folder %q is not absolute or has one of , : \\ in it", c.Root)
	}
	s := &Store{
		root: filepath.Clean(c.Root), mounts: c.Mounts.withDefaults(), keep: c.Keep, budget: c.Budget, reserve: c.Reserve, statfs: c.Statfs,
		step:   func(string) error { return nil },
		layers: make(map[digest.Digest]*entry), containers: make(map[string]*container),
	}
	if s.reserve <= 0 {
		s.reserve = DefaultReserve
	}
	if s.statfs == nil {
		s.statfs = statfs
	}
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return nil, fmt.Errorf("create image store: %w", err)
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// load empties the folders whose content ends with the process, all of them unless layers are kept.
func (s *Store) load() error {
	clear := []string{linksDir, stagingDir, containersDir}
	if s.keep {
		if err := s.acquire(); err != nil {
			return err
		}
	} else {
		clear = append(clear, recordsDir, layersDir)
	}
	for _, dir := range clear {
		if err := os.RemoveAll(filepath.Join(s.root, dir)); err != nil {
			return fmt.Errorf("clear image store: %w", err)
		}
	}
	for _, dir := range []string{layersDir, linksDir, stagingDir, containersDir, recordsDir} {
		if err := os.MkdirAll(filepath.Join(s.root, dir), 0o700); err != nil {
			return fmt.Errorf("create image store: %w", err)
		}
	}
	if !s.keep {
		return nil
	}
	return s.loadLayers()
}

// Close lets another process open the store. Mounts and layers stay.
func (s *Store) Close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// Layer returns the layer of a blob digest, if it is there.
func (s *Store) Layer(blob digest.Digest) (Layer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.layers[blob]
	if !ok {
		return Layer{}, false
	}
	return e.layer, true
}

func (s *Store) number() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.numberLocked()
}

func (s *Store) numberLocked() string {
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
// is still there for Discard. Commit may remove other layers to stay within the budget.
func (t *Staging) Commit(l Layer) (Layer, error) {
	s := t.store
	if s.keep {
		// The record must never be on the disk before what it stands for.
		if err := s.sync(t.dir); err != nil {
			return Layer{}, fmt.Errorf("commit layer: %w", err)
		}
	}
	l, err := t.commit(l)
	if err != nil {
		return Layer{}, err
	}
	if err := t.Discard(); err != nil {
		return Layer{}, err
	}
	return l, s.trim(l.Blob)
}

func (t *Staging) commit(l Layer) (_ Layer, err error) {
	s := t.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, ok := s.layers[l.Blob]; ok {
		if !have.layer.same(l) {
			return Layer{}, fmt.Errorf("layer %s is here already as another one", l.Blob)
		}
		return have.layer, nil
	}
	path := s.path(l.Blob)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	if l.link, err = s.makeLink(l.Blob); err != nil {
		return Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(l.link))
		}
	}()
	// A removal that failed half way can have left something, which is no layer.
	if err := os.Rename(path, filepath.Join(s.root, stagingDir, s.numberLocked())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	if err := s.rename("layer", t.dir, path); err != nil {
		return Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	if err := s.writeRecord(l); err != nil {
		return Layer{}, errors.Join(fmt.Errorf("commit layer: %w", err), os.Rename(path, t.dir))
	}
	t.dir = ""
	s.uses++
	s.layers[l.Blob] = &entry{layer: l, used: s.uses}
	return l, nil
}

func (s *Store) path(blob digest.Digest) string {
	return filepath.Join(s.root, layersDir, blob.Algorithm().String(), blob.Encoded())
}

// makeLink makes a layer's short name. The caller holds the lock, or is alone.
func (s *Store) makeLink(blob digest.Digest) (string, error) {
	link := filepath.Join(s.root, linksDir, s.numberLocked())
	if err := s.step("link"); err != nil {
		return "", err
	}
	return link, os.Symlink(filepath.Join("..", layersDir, blob.Algorithm().String(), blob.Encoded()), link)
}

func (s *Store) rename(step, from, to string) error {
	if err := s.step(step); err != nil {
		return err
	}
	return os.Rename(from, to)
}
