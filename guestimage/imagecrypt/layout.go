// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/registry"
)

// layout is an OCI image layout (image-layout.md of the OCI image spec 1.1) that holds one image.
type layout struct {
	dir string
	// created says that the folder was not there before.
	created bool
}

// createLayout makes an empty layout in a folder that does not exist or is empty.
func createLayout(dir string) (*layout, error) {
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty", dir)
	}
	l := &layout{dir: dir, created: errors.Is(err, fs.ErrNotExist)}
	if err := os.MkdirAll(filepath.Join(dir, ocispec.ImageBlobsDir, "sha256"), 0o755); err != nil { // no secrets in it
		return nil, fmt.Errorf("create image layout: %w", err)
	}
	return l, nil
}

// discard removes what has been written, so that the same command can be given again.
func (l *layout) discard() error {
	if l.created {
		return os.RemoveAll(l.dir)
	}
	var errs []error
	for _, name := range []string{ocispec.ImageBlobsDir, ocispec.ImageIndexFile, ocispec.ImageLayoutFile} {
		errs = append(errs, os.RemoveAll(filepath.Join(l.dir, name)))
	}
	return errors.Join(errs...)
}

// openLayout opens a layout with one image.
func openLayout(dir string) (*layout, error) {
	data, err := os.ReadFile(filepath.Join(dir, ocispec.ImageLayoutFile)) // the user's file
	if err != nil {
		return nil, fmt.Errorf("open image layout: %w", err)
	}
	var l ocispec.ImageLayout
	if err := json.Unmarshal(data, &l); err != nil || l.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("%s is not an OCI image layout of version %s", dir, ocispec.ImageLayoutVersion)
	}
	return &layout{dir: dir}, nil
}

func (l *layout) path(d digest.Digest) string {
	return filepath.Join(l.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// open opens a blob. Its digest is not checked: a registry or guest does that.
func (l *layout) open(desc ocispec.Descriptor) (*os.File, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	f, err := os.Open(l.path(desc.Digest))
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() != desc.Size {
		err = fmt.Errorf("blob %s has %d bytes, its descriptor says %d", desc.Digest, info.Size(), desc.Size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// small reads a blob of at most registry.MaxManifestSize bytes and checks its digest.
func (l *layout) small(desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > registry.MaxManifestSize {
		return nil, fmt.Errorf("blob %s has %d bytes, at most %d are allowed", desc.Digest, desc.Size, registry.MaxManifestSize)
	}
	f, err := l.open(desc)
	if err != nil {
		return nil, err
	}
	defer f.Close() // opened for reading
	data, err := io.ReadAll(io.LimitReader(f, desc.Size))
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	if desc.Digest.Algorithm().FromBytes(data) != desc.Digest {
		return nil, fmt.Errorf("blob %s does not match its digest", desc.Digest)
	}
	return data, nil
}

// write stores what r has as a blob of a media type.
func (l *layout) write(mediaType string, r io.Reader) (_ ocispec.Descriptor, err error) {
	f, err := os.CreateTemp(filepath.Join(l.dir, ocispec.ImageBlobsDir), ".blob-")
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	hash := digest.SHA256.Digester()
	n, err := io.Copy(io.MultiWriter(f, hash.Hash()), r)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	if err := f.Chmod(0o644); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	if err := os.Rename(f.Name(), l.path(hash.Digest())); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: hash.Digest(), Size: n}
	if err := f.Close(); err != nil {
		return desc, fmt.Errorf("write blob: %w", err)
	}
	return desc, nil
}

func (l *layout) writeJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	return l.write(mediaType, bytes.NewReader(data))
}

// finish writes the manifest and what makes the folder a layout, and returns the manifest's descriptor.
func (l *layout) finish(m *ocispec.Manifest) (ocispec.Descriptor, error) {
	desc, err := l.writeJSON(m.MediaType, m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{desc},
	}
	for name, v := range map[string]any{
		ocispec.ImageIndexFile:  index,
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
	} {
		data, err := json.Marshal(v)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("encode %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(l.dir, name), append(data, '\n'), 0o644); err != nil { //nolint:gosec // G306: no secret
			return ocispec.Descriptor{}, fmt.Errorf("write image layout: %w", err)
		}
	}
	return desc, nil
}

// manifest returns the layout's only manifest.
func (l *layout) manifest() (ocispec.Descriptor, *ocispec.Manifest, error) {
	data, err := os.ReadFile(filepath.Join(l.dir, ocispec.ImageIndexFile))
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("read image layout: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("read image layout: %w", err)
	}
	if len(index.Manifests) != 1 || index.Manifests[0].MediaType != ocispec.MediaTypeImageManifest {
		return ocispec.Descriptor{}, nil, fmt.Errorf("%s does not hold exactly one image manifest", l.dir)
	}
	desc := index.Manifests[0]
	if data, err = l.small(desc); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	m, err := registry.ParseManifest(data)
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest of %s: %w", l.dir, err)
	}
	return desc, m, nil
}
