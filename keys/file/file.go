// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package file serves keys from a folder: the key of kbs:///repository/type/tag is the file repository/type/tag. The
// folder comes out of the sealed initramfs and is read once; afterwards its files can be wiped.
//
// This is the guest without a key broker: whoever can build the sealed image can read its keys, nobody else.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/cloister-cc/cloister/keys"
)

// Limits of a folder.
const (
	// MaxKeys is the number of keys in a folder.
	MaxKeys = 1024
	// MaxKeySize is the size of one key in bytes.
	MaxKeySize = 64 << 10
	// maxEntries bounds the folder's entries, folders included.
	maxEntries = 4 * MaxKeys
)

// Store holds the keys of a folder in memory. It implements keys.Provider and may be used from many goroutines.
type Store struct {
	mu   sync.RWMutex
	keys map[string]*keys.Secret // by URI
}

var _ keys.Provider = (*Store)(nil)

// Load reads every key below dir. A folder that does not exist holds no keys. Anything but regular files exactly three
// levels deep with the names that key URIs allow is an error, as are empty keys and more than MaxKeys or MaxKeySize:
// a guest does not start with a key that nobody can ask for.
func Load(dir string) (*Store, error) {
	s := &Store{keys: make(map[string]*keys.Secret)}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open key folder: %w", err)
	}
	defer root.Close() //nolint:errcheck // opened for reading
	if err := s.load(root); err != nil {
		s.Close()
		return nil, fmt.Errorf("load keys from %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) load(root *os.Root) error {
	entries := 0
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entries++; entries > maxEntries {
			return fmt.Errorf("more than %d entries", maxEntries)
		}
		if d.IsDir() {
			if strings.Count(path, "/") > 1 {
				return fmt.Errorf("%s: folder where a key was expected", path)
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s: neither a file nor a folder", path)
		}
		resource, err := keys.ParseURI(keys.URIPrefix + path)
		if err != nil {
			return err
		}
		if len(s.keys) == MaxKeys {
			return fmt.Errorf("more than %d keys", MaxKeys)
		}
		secret, err := read(root, path)
		if err != nil {
			return err
		}
		s.keys[resource.String()] = secret
		return nil
	})
}

// read reads one key into a buffer of its size, so that no other copy of it is left in memory.
func read(root *os.Root, path string) (*keys.Secret, error) {
	f, err := root.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open key: %w", err)
	}
	defer f.Close() // opened for reading
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() == 0 || info.Size() > MaxKeySize {
		return nil, fmt.Errorf("%s: size %d is not between 1 and %d bytes", path, info.Size(), MaxKeySize)
	}
	secret := keys.NewSecret(make([]byte, info.Size()))
	if _, err := io.ReadFull(f, secret.Bytes()); err != nil {
		secret.Wipe()
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	return secret, nil
}

// Get returns a copy of the key of a URI; the caller wipes it. A URI that is not well formed is an error; one that the
// folder had no file for is keys.ErrNotFound.
func (s *Store) Get(_ context.Context, uri string) (*keys.Secret, error) {
	if _, err := keys.ParseURI(uri); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	secret, ok := s.keys[uri]
	if !ok {
		return nil, fmt.Errorf("%s: %w", uri, keys.ErrNotFound)
	}
	return secret.Clone(), nil
}

// Len returns the number of keys.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.keys)
}

// Close wipes every key. Get then answers keys.ErrNotFound. It may be called more than once.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.keys {
		secret.Wipe()
	}
	clear(s.keys)
}
