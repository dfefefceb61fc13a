// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
)

// Kinds of manifest entries.
const (
	kindFile    = "file"
	kindDir     = "dir"
	kindSymlink = "symlink"
	kindChar    = "char"
)

// Manifest lists what an initramfs holds, in the order of the archive.
type Manifest struct {
	// Version is 1.
	Version int `json:"version"`
	// Entries are the entries of the image, but for the manifest's own.
	Entries []ManifestEntry `json:"entries"`
}

// ManifestEntry describes one entry of an initramfs.
type ManifestEntry struct {
	Path string `json:"path"`
	// Kind is file, dir, symlink or char.
	Kind string `json:"kind"`
	// Mode is the permissions as four octal digits.
	Mode string `json:"mode"`
	// Size is the size in bytes of a regular file.
	Size int64 `json:"size"`
	// SHA256 is the hash of a regular file's content in hexadecimal. Secrets have none: it would help to guess them.
	SHA256 string `json:"sha256,omitempty"`
	// Secret marks files whose content is secret.
	Secret bool `json:"secret,omitempty"`
	// Target is where a symbolic link points to.
	Target string `json:"target,omitempty"`
	// Device is the number of a character device as "major:minor".
	Device string `json:"device,omitempty"`
}

// Manifest describes the tree as it stands. A later Write fails if the content of a listed file has changed since.
func (t *Tree) Manifest() (*Manifest, error) {
	files, err := t.sorted()
	if err != nil {
		return nil, fmt.Errorf("make manifest: %w", err)
	}
	m := &Manifest{Version: 1, Entries: make([]ManifestEntry, 0, len(files))}
	t.digests = make(map[string]string, len(files))
	for i := range files {
		e, err := files[i].describe()
		if err != nil {
			return nil, fmt.Errorf("make manifest: %w", err)
		}
		if e.SHA256 != "" {
			t.digests[e.Path] = e.SHA256
		}
		m.Entries = append(m.Entries, e)
	}
	return m, nil
}

// Encode writes the manifest as JSON with a final newline.
func (m *Manifest) Encode() ([]byte, error) {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(data, '\n'), nil
}

func (f *File) describe() (ManifestEntry, error) {
	e := ManifestEntry{Path: f.Path, Mode: fmt.Sprintf("%04o", f.Mode.Perm()), Secret: f.Secret, Target: f.Target}
	switch f.Mode.Type() {
	case fs.ModeDir:
		e.Kind = kindDir
	case fs.ModeSymlink:
		e.Kind, e.Mode = kindSymlink, "0777"
	case fs.ModeDevice | fs.ModeCharDevice:
		e.Kind, e.Device = kindChar, fmt.Sprintf("%d:%d", f.Major, f.Minor)
	default:
		e.Kind = kindFile
		r, size, err := f.open()
		if err != nil {
			return e, err
		}
		defer r.Close()
		e.Size = size
		if !f.Secret {
			h := sha256.New()
			if err := copyExactly(h, r, size); err != nil {
				return e, fmt.Errorf("%s: %w", f.Path, err)
			}
			e.SHA256 = hex.EncodeToString(h.Sum(nil))
		}
	}
	return e, nil
}

// Inspect lists the entries of an image that NewImageReader reads, as a manifest. Content of the files that secret
// names is not hashed; a nil secret hashes everything.
func Inspect(r io.Reader, secret func(path string) bool) (*Manifest, error) {
	ar, closer, err := NewImageReader(r)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	m := &Manifest{Version: 1}
	for {
		e, err := ar.Next()
		if err == io.EOF { //nolint:errorlint // Next returns io.EOF itself
			return m, nil
		}
		if err != nil {
			return nil, err
		}
		f := File{Path: e.Path, Mode: e.Mode, Target: e.Target, Major: e.Major, Minor: e.Minor}
		f.Secret = secret != nil && e.Mode.IsRegular() && secret(e.Path)
		me, err := f.describe()
		if err != nil {
			return nil, err
		}
		if e.Mode.IsRegular() {
			h := sha256.New()
			if me.Size, err = io.Copy(h, ar); err != nil {
				return nil, fmt.Errorf("read %s of initramfs: %w", e.Path, err)
			}
			if me.SHA256 = ""; !f.Secret {
				me.SHA256 = hex.EncodeToString(h.Sum(nil))
			}
		}
		m.Entries = append(m.Entries, me)
	}
}
