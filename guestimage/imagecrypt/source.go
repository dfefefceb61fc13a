// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/registry"
)

// maxBlob bounds a layer as it is stored, in bytes. Guests refuse larger ones, too.
const maxBlob = 8 << 30

// source is where an image comes from. Nothing that it returns is verified, see reader.
type source interface {
	// root returns the bytes of the image's manifest or index and its digest.
	root(ctx context.Context) ([]byte, digest.Digest, error)
	// blob opens a blob or, with the media type of one, a manifest.
	blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	Close() error
}

// openSource opens a location to read from.
func openSource(l Location, a Access) (source, error) {
	switch l.Transport {
	case Docker:
		return openRegistry(l, a)
	case OCI:
		return &blobTree{tree: folder(l.Path), location: l}, nil
	case OCIArchive:
		t, err := openTar(l.Path)
		if err != nil {
			return nil, err
		}
		return &blobTree{tree: t, location: l}, nil
	case DockerArchive:
		return openDockerArchive(l)
	default:
		return nil, fmt.Errorf("transport %.40q is not known", l.Transport)
	}
}

// checkBlob is the first look at a descriptor from a source that is not trusted.
func checkBlob(desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %.200q: %w", string(desc.Digest), err)
	}
	if desc.Size < 0 || desc.Size > maxBlob {
		return fmt.Errorf("blob %s has %d bytes, at most %d are allowed", desc.Digest, desc.Size, int64(maxBlob))
	}
	return nil
}

// verifyingReader returns io.EOF only when as many bytes as the descriptor says have come and have its digest.
type verifyingReader struct {
	r     io.Reader
	desc  ocispec.Descriptor
	check digest.Verifier
	n     int64
}

// verify reads a blob that is not trusted.
func verify(r io.Reader, desc ocispec.Descriptor) io.Reader {
	return &verifyingReader{r: io.LimitReader(r, desc.Size+1), desc: desc, check: desc.Digest.Verifier()}
}

func (v *verifyingReader) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.n += int64(n)
	_, _ = v.check.Write(p[:n]) // a hash takes everything
	switch {
	case v.n > v.desc.Size:
		return 0, fmt.Errorf("blob %s is larger than the %d bytes that its descriptor says", v.desc.Digest, v.desc.Size)
	case errors.Is(err, io.EOF) && v.n != v.desc.Size:
		return n, fmt.Errorf("blob %s has %d bytes, its descriptor says %d", v.desc.Digest, v.n, v.desc.Size)
	case errors.Is(err, io.EOF) && !v.check.Verified():
		return n, fmt.Errorf("blob %s does not match its digest", v.desc.Digest)
	}
	return n, err
}

// small reads a whole manifest, index or config and verifies it.
func small(ctx context.Context, s source, desc ocispec.Descriptor) ([]byte, error) {
	if err := checkBlob(desc); err != nil {
		return nil, err
	}
	if desc.Size > registry.MaxManifestSize {
		return nil, fmt.Errorf("blob %s has %d bytes, at most %d are allowed", desc.Digest, desc.Size, registry.MaxManifestSize)
	}
	r, err := s.blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close() // opened for reading
	data, err := io.ReadAll(verify(r, desc))
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	return data, nil
}

// tree is a folder, or what is in an archive.
type tree interface {
	// open opens a file by a path with slashes.
	open(name string) (io.ReadCloser, int64, error)
	Close() error
}

type folder string

func (d folder) open(name string) (io.ReadCloser, int64, error) {
	f, err := os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
	if err != nil {
		return nil, 0, fmt.Errorf("open image layout: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

func (folder) Close() error { return nil }

// readSmall reads a whole file of a tree.
func readSmall(t tree, name string) ([]byte, error) {
	f, size, err := t.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // opened for reading
	if size > registry.MaxManifestSize {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are allowed", name, size, registry.MaxManifestSize)
	}
	data, err := io.ReadAll(io.LimitReader(f, registry.MaxManifestSize))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// blobTree is an OCI image layout, in a folder or a tar.
type blobTree struct {
	tree

	location Location
}

func (b *blobTree) root(ctx context.Context) ([]byte, digest.Digest, error) {
	data, err := readSmall(b.tree, ocispec.ImageLayoutFile)
	if err != nil {
		return nil, "", err
	}
	var l ocispec.ImageLayout
	if err := json.Unmarshal(data, &l); err != nil || l.Version != ocispec.ImageLayoutVersion {
		return nil, "", fmt.Errorf("%s is not an OCI image layout of version %s", b.location.Path, ocispec.ImageLayoutVersion)
	}
	if data, err = readSmall(b.tree, ocispec.ImageIndexFile); err != nil {
		return nil, "", err
	}
	index, err := registry.ParseIndex(data)
	if err != nil {
		return nil, "", fmt.Errorf("%s of %s: %w", ocispec.ImageIndexFile, b.location.Path, err)
	}
	desc, err := choose(index.Manifests, b.location)
	if err != nil {
		return nil, "", err
	}
	data, err = small(ctx, b, desc)
	return data, desc.Digest, err
}

// choose finds the image of a location's name among those of a layout.
func choose(all []ocispec.Descriptor, l Location) (ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	var names []string
	for _, d := range all {
		name := d.Annotations[ocispec.AnnotationRefName]
		if l.Name == "" || l.Name == name {
			found = append(found, d)
		}
		if name != "" && len(names) < 20 {
			names = append(names, fmt.Sprintf("%.100q", name))
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && l.Name != "":
		return ocispec.Descriptor{}, fmt.Errorf("%s holds no image of the name %s (it has: %s)", l.Path, l.Name, strings.Join(names, ", "))
	case len(found) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("%s holds no image", l.Path)
	default:
		return ocispec.Descriptor{}, fmt.Errorf("%s holds %d images: choose one of %s after a colon", l.Path, len(found), strings.Join(names, ", "))
	}
}

func (b *blobTree) blob(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := checkBlob(desc); err != nil { // the digest becomes a path
		return nil, err
	}
	r, _, err := b.open(ocispec.ImageBlobsDir + "/" + desc.Digest.Algorithm().String() + "/" + desc.Digest.Encoded())
	return r, err
}
