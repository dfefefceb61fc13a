// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// record is what the disk says of a layer that is kept, one file for each: it is written last and removed first, so a
// layer without one was not finished, or is on its way out.
type record struct {
	Version   int           `json:"version"`
	Blob      digest.Digest `json:"blob"`
	DiffID    digest.Digest `json:"diffID"`
	Encrypted bool          `json:"encrypted"`
	Opaque    bool          `json:"opaque"`
	Size      int64         `json:"size"`
}

const (
	recordVersion = 2
	maxRecord     = 4096 // bytes
)

func (s *Store) recordPath(blob digest.Digest) string {
	return filepath.Join(s.root, recordsDir, blob.Algorithm().String()+"-"+blob.Encoded())
}

// acquire makes sure that no other process uses a store whose layers stay.
func (s *Store) acquire() error {
	f, err := os.OpenFile(filepath.Join(s.root, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock image store: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("lock image store: another process uses it: %w", err)
	}
	s.lock = f
	return nil
}

// sync writes what a folder's file system has not written yet.
func (s *Store) sync(dir string) error {
	if err := s.step("sync"); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// writeRecord makes a layer one that is kept. It does nothing in a store that keeps none.
func (s *Store) writeRecord(l Layer) error {
	if !s.keep {
		return nil
	}
	data, err := json.Marshal(record{recordVersion, l.Blob, l.DiffID, l.Encrypted, l.Opaque, l.Size})
	if err != nil {
		return err
	}
	folder := filepath.Dir(s.path(l.Blob))
	if err := errors.Join(syncDir(folder), syncDir(filepath.Dir(folder))); err != nil {
		return err
	}
	if err := s.step("write record"); err != nil {
		return err
	}
	temporary := filepath.Join(s.root, stagingDir, s.numberLocked())
	if err := writeSynced(temporary, data); err != nil {
		return errors.Join(err, removeFile(temporary))
	}
	if err := s.rename("record", temporary, s.recordPath(l.Blob)); err != nil {
		return errors.Join(err, removeFile(temporary))
	}
	if err := s.step("recorded"); err != nil {
		return errors.Join(err, removeFile(s.recordPath(l.Blob)))
	}
	return syncDir(filepath.Join(s.root, recordsDir))
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncDir makes names in a folder last.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// removeFile removes a file that may not be there.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// loadLayers takes over the layers that have a record, and removes everything else.
func (s *Store) loadLayers() error {
	known := make(map[string]bool)
	records, err := os.ReadDir(filepath.Join(s.root, recordsDir))
	if err != nil {
		return fmt.Errorf("load image store: %w", err)
	}
	for _, r := range records {
		l, err := s.loadLayer(r)
		if err != nil {
			// A record that cannot be read is that of a layer which cannot be used; it is pulled again.
			if err := os.RemoveAll(filepath.Join(s.root, recordsDir, r.Name())); err != nil {
				return fmt.Errorf("load image store: %w", err)
			}
			continue
		}
		if l.link, err = s.makeLink(l.Blob); err != nil {
			return fmt.Errorf("load image store: %w", err)
		}
		s.layers[l.Blob] = &entry{layer: l}
		known[s.path(l.Blob)] = true
	}
	found, err := filepath.Glob(filepath.Join(s.root, layersDir, "*", "*"))
	if err != nil {
		return fmt.Errorf("load image store: %w", err)
	}
	for _, path := range slices.DeleteFunc(found, func(p string) bool { return known[p] }) {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("load image store: %w", err)
		}
	}
	return nil
}

// loadLayer reads one record and looks whether its layer is there.
func (s *Store) loadLayer(file fs.DirEntry) (Layer, error) {
	f, err := os.OpenFile(filepath.Join(s.root, recordsDir, file.Name()), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return Layer{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return Layer{}, err
	}
	l, err := parseRecord(data)
	if err != nil {
		return Layer{}, err
	}
	if s.recordPath(l.Blob) != f.Name() {
		return Layer{}, fmt.Errorf("record %s is that of %s", file.Name(), l.Blob)
	}
	info, err := os.Lstat(s.path(l.Blob))
	if err != nil {
		return Layer{}, err
	}
	if !info.IsDir() {
		return Layer{}, fmt.Errorf("layer %s is not a folder", l.Blob)
	}
	return l, nil
}

// parseRecord reads a record; whatever it does not know is an error.
func parseRecord(data []byte) (Layer, error) {
	if len(data) > maxRecord {
		return Layer{}, fmt.Errorf("record of more than %d bytes", maxRecord)
	}
	var r record
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Layer{}, fmt.Errorf("record: %w", err)
	}
	if d.More() || r.Version != recordVersion || r.Size < 0 {
		return Layer{}, errors.New("record is not of the known kind")
	}
	if err := errors.Join(r.Blob.Validate(), r.DiffID.Validate()); err != nil {
		return Layer{}, fmt.Errorf("record: %w", err)
	}
	return Layer{Blob: r.Blob, DiffID: r.DiffID, Encrypted: r.Encrypted, Opaque: r.Opaque, Size: r.Size}, nil
}
