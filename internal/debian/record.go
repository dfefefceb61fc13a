// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package debian

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Package is a package, or the upstream tar file of a source package, in the cache.
type Package struct {
	Suite
	// Name is the binary or source package's name.
	Name string `json:"name"`
	// Version is Debian's version.
	Version string `json:"version"`
	// SHA256 of the .deb or tar file, as the suite's signed lists give it, in hexadecimal.
	SHA256 string `json:"sha256"`
	// Path is the unpacked folder, or the tar file of a source package.
	Path string `json:"path"`
	// Depends is the package's Depends field, as in its control file; empty for a source package.
	Depends string `json:"depends,omitempty"`
	// Checked is when the suite's lists were last seen to name this version.
	Checked time.Time `json:"checked"`
}

// record is what the cache holds: for each suite and package name the version that was last used.
type record struct {
	Packages map[string]Package `json:"packages"`
}

func recordKey(s Suite, name string) string { return s.String() + "/" + name }

func (a *Archive) recordPath() string { return filepath.Join(a.dir, "packages.json") }

func readRecord(path string) (record, error) {
	r := record{Packages: map[string]Package{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("read package record: %w", err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read package record %s (remove it to fetch everything again): %w", path, err)
	}
	if r.Packages == nil {
		r.Packages = map[string]Package{}
	}
	return r, nil
}

// cached returns the recorded package when what it names is still on the disk.
func (a *Archive) cached(s Suite, name string) (Package, bool) {
	a.mu.Lock()
	p, ok := a.record.Packages[recordKey(s, name)]
	a.mu.Unlock()
	if !ok {
		return Package{}, false
	}
	if _, err := os.Stat(p.Path); err != nil {
		return Package{}, false
	}
	return p, true
}

// remember writes the package into the record file.
func (a *Archive) remember(p Package) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.record.Packages[recordKey(p.Suite, p.Name)] = p
	data, err := json.MarshalIndent(a.record, "", "  ")
	if err != nil {
		return fmt.Errorf("write package record: %w", err)
	}
	if err := writeFileAtomic(a.recordPath(), append(data, '\n')); err != nil {
		return fmt.Errorf("write package record: %w", err)
	}
	return nil
}

func writeFileAtomic(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
