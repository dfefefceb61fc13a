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
)

// layout is an OCI image layout (image-layout.md of the OCI image spec 1.1) that is being written. Until it is published
// it is in a folder of another name, so that nobody sees half of it.
type layout struct {
	dir string
}

// stageLayout makes an empty layout in a new folder in parent.
func stageLayout(parent string) (*layout, error) {
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("create image layout: %w", err)
	}
	dir, err := os.MkdirTemp(parent, ".cloister-")
	if err != nil {
		return nil, fmt.Errorf("create image layout: %w", err)
	}
	l := &layout{dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, ocispec.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("create image layout: %w", err), l.discard())
	}
	return l, nil
}

// checkNewFolder says whether a layout can be published at dir: there is nothing, or an empty folder.
func checkNewFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("create image layout: %w", err)
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty", dir)
	}
	return nil
}

// publish gives the layout its name.
func (l *layout) publish(dir string) error {
	if err := checkNewFolder(dir); err != nil {
		return err
	}
	if err := os.Chmod(l.dir, 0o755); err != nil {
		return fmt.Errorf("publish image layout: %w", err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // an empty folder
		return fmt.Errorf("publish image layout: %w", err)
	}
	if err := os.Rename(l.dir, dir); err != nil {
		return fmt.Errorf("publish image layout: %w", err)
	}
	return nil
}

// discard removes what has been written. After publish there is nothing left to remove.
func (l *layout) discard() error { return os.RemoveAll(l.dir) }

func (l *layout) path(d digest.Digest) string {
	return filepath.Join(l.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
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

// finish writes what makes the folder a layout with one image, of a name or of none.
func (l *layout) finish(root ocispec.Descriptor, name string) error {
	if name != "" {
		root.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{root},
	}
	for name, v := range map[string]any{
		ocispec.ImageIndexFile:  index,
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
	} {
		data, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("encode %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(l.dir, name), append(data, '\n'), 0o644); err != nil { //nolint:gosec // G306: no secret
			return fmt.Errorf("write image layout: %w", err)
		}
	}
	return nil
}
