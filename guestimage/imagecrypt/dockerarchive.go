// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/registry"
)

// dockerManifest is the file that lists the images of a docker-archive.
const dockerManifest = "manifest.json"

// dockerImage is one entry of dockerManifest.
type dockerImage struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// dockerArchive shows an image of a docker-archive as an OCI image.
type dockerArchive struct {
	*tarTree

	image    dockerImage
	config   []byte
	manifest []byte
	blobs    map[digest.Digest]string
}

func openDockerArchive(l Location) (_ source, err error) {
	t, err := openTar(l.Path)
	if err != nil {
		return nil, err
	}
	a, err := parseDockerArchive(t, l.Name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("docker-archive %s: %w", l.Path, err), t.Close())
	}
	return a, nil
}

// parseDockerArchive reads the lists of an archive, no layer.
func parseDockerArchive(t *tarTree, name string) (*dockerArchive, error) {
	data, err := readSmall(t, dockerManifest)
	if err != nil {
		return nil, err
	}
	var images []dockerImage
	if err := json.Unmarshal(data, &images); err != nil {
		return nil, fmt.Errorf("%s: parse: %w", dockerManifest, err)
	}
	a := &dockerArchive{tarTree: t, blobs: make(map[digest.Digest]string)}
	if a.image, err = chooseDocker(images, name); err != nil {
		return nil, err
	}
	if a.config, err = readSmall(t, a.image.Config); err != nil {
		return nil, err
	}
	if n := len(a.image.Layers); n == 0 || n > registry.MaxLayers {
		return nil, fmt.Errorf("%d layers, between 1 and %d are allowed", n, registry.MaxLayers)
	}
	return a, nil
}

func chooseDocker(images []dockerImage, name string) (dockerImage, error) {
	if name == "" && len(images) == 1 {
		return images[0], nil
	}
	var names []string
	for _, i := range images {
		if name != "" && slices.Contains(i.RepoTags, name) {
			return i, nil
		}
		for _, tag := range i.RepoTags {
			if len(names) < 20 {
				names = append(names, fmt.Sprintf("%.100q", tag))
			}
		}
	}
	if name == "" {
		return dockerImage{}, fmt.Errorf("holds %d images: choose one of %s after a colon", len(images), strings.Join(names, ", "))
	}
	return dockerImage{}, fmt.Errorf("holds no image of the name %.200s (it has: %s)", name, strings.Join(names, ", "))
}

// root makes the manifest that the archive does not have.
func (a *dockerArchive) root(ctx context.Context) ([]byte, digest.Digest, error) {
	if a.manifest != nil {
		return a.manifest, digest.FromBytes(a.manifest), nil
	}
	diffIDs, err := parseDiffIDs(a.config)
	if err != nil {
		return nil, "", err
	}
	if len(diffIDs) != len(a.image.Layers) {
		return nil, "", fmt.Errorf("config has %d layers, %s %d", len(diffIDs), dockerManifest, len(a.image.Layers))
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(a.config), Size: int64(len(a.config)),
		},
	}
	for i, name := range a.image.Layers {
		if err := ctx.Err(); err != nil {
			return nil, "", err
		}
		desc, err := a.layer(name, diffIDs[i])
		if err != nil {
			return nil, "", fmt.Errorf("layer %d: %w", i, err)
		}
		m.Layers = append(m.Layers, desc)
	}
	if a.manifest, err = json.Marshal(m); err != nil {
		return nil, "", fmt.Errorf("encode manifest: %w", err)
	}
	return a.manifest, digest.FromBytes(a.manifest), nil
}

// layer describes a layer by what its first bytes say. A plain one has its diff_id as digest; whether that is true shows
// when it is read.
func (a *dockerArchive) layer(name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	r, size, err := a.open(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer r.Close() // opened for reading
	magic := make([]byte, 4)
	n, err := io.ReadFull(r, magic)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: size}
	switch {
	case bytes.HasPrefix(magic[:n], []byte{0x1f, 0x8b}):
		desc.MediaType = ocispec.MediaTypeImageLayerGzip
	case bytes.Equal(magic[:n], []byte{0x28, 0xb5, 0x2f, 0xfd}):
		desc.MediaType = ocispec.MediaTypeImageLayerZstd
	}
	if desc.MediaType != ocispec.MediaTypeImageLayer {
		hash := digest.SHA256.Digester()
		if _, err := io.Copy(hash.Hash(), io.MultiReader(bytes.NewReader(magic[:n]), r)); err != nil {
			return ocispec.Descriptor{}, err
		}
		desc.Digest = hash.Digest()
	}
	a.blobs[desc.Digest] = name
	return desc, nil
}

func (a *dockerArchive) blob(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if desc.Digest == digest.FromBytes(a.config) {
		return io.NopCloser(bytes.NewReader(a.config)), nil
	}
	name, ok := a.blobs[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("archive has no blob %s", desc.Digest)
	}
	r, _, err := a.open(name)
	return r, err
}

// parseDiffIDs returns the digests of the uncompressed layers that an image config names.
func parseDiffIDs(config []byte) ([]digest.Digest, error) {
	var c ocispec.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("config: parse: %w", err)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("config: diff_id %.200q: %w", string(d), err)
		}
	}
	return c.RootFS.DiffIDs, nil
}
