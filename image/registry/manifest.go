// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxLayers bounds the layers of an image: what other container engines allow, too.
const MaxLayers = 127

// Docker's media types, see its image manifest V2 schema 2.
const (
	mediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	mediaTypeDockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// Layer is one layer of an image, lowest first.
type Layer struct {
	// Descriptor says what the registry holds: media type, size and digest of the blob, annotations.
	Descriptor ocispec.Descriptor
	// DiffID is the digest of the layer's plain, uncompressed tar.
	DiffID digest.Digest
}

// Image is a manifest with its config, both checked.
type Image struct {
	// Digest is what the reference stands for: that of the index where there is one, else the manifest's.
	Digest digest.Digest
	// Manifest is the digest of the manifest.
	Manifest digest.Digest
	// Layers are the image's layers, lowest first, at most MaxLayers.
	Layers []Layer
}

// Image fetches the image that a digest stands for: through an index to the manifest of the platform linux/arch, to the
// config. Each is at most MaxManifestSize bytes and has the digest by which it was asked for.
func (c *Client) Image(ctx context.Context, ref Reference, d digest.Digest, arch string) (*Image, error) {
	data, err := c.Manifest(ctx, ref, d)
	if err != nil {
		return nil, err
	}
	manifest := d
	if IsIndex(data) {
		if manifest, err = parseIndex(data, arch); err != nil {
			return nil, fmt.Errorf("index of %s: %w", ref, err)
		}
		if data, err = c.Manifest(ctx, ref, manifest); err != nil {
			return nil, err
		}
	}
	m, err := ParseManifest(data)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", ref, err)
	}
	config, err := c.small(ctx, ref, m.Config)
	if err != nil {
		return nil, err
	}
	diffIDs, err := parseConfig(config, arch)
	if err != nil {
		return nil, fmt.Errorf("config of %s: %w", ref, err)
	}
	if len(diffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("config of %s has %d layers, its manifest %d", ref, len(diffIDs), len(m.Layers))
	}
	img := &Image{Digest: d, Manifest: manifest, Layers: make([]Layer, len(diffIDs))}
	for i := range diffIDs {
		img.Layers[i] = Layer{Descriptor: m.Layers[i], DiffID: diffIDs[i]}
	}
	return img, nil
}

// shape is what tells a manifest from an index. One document must not pass as both (OCI's CVE-2021-41190).
type shape struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        json.RawMessage `json:"config"`
	Layers        json.RawMessage `json:"layers"`
	Manifests     json.RawMessage `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
}

// IsIndex says whether a document is to be read as an index rather than a manifest.
func IsIndex(data []byte) bool {
	var s shape
	return json.Unmarshal(data, &s) == nil && s.Manifests != nil
}

// ParseIndex reads an OCI index or a Docker manifest list. What its entries say is left to the caller.
func ParseIndex(data []byte) (*ocispec.Index, error) {
	var s shape
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	if s.SchemaVersion != 2 || s.Config != nil || s.Layers != nil || s.FSLayers != nil {
		return nil, errors.New("neither an OCI index nor a Docker manifest list")
	}
	if s.MediaType != "" && s.MediaType != ocispec.MediaTypeImageIndex && s.MediaType != mediaTypeDockerList {
		return nil, fmt.Errorf("media type %.100q is not that of an index", s.MediaType)
	}
	index := new(ocispec.Index)
	if err := json.Unmarshal(data, index); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	return index, nil
}

// parseIndex returns the digest of the manifest for linux on arch, a GOARCH.
func parseIndex(data []byte, arch string) (digest.Digest, error) {
	index, err := ParseIndex(data)
	if err != nil {
		return "", err
	}
	for _, m := range index.Manifests {
		if m.Platform == nil || m.Platform.OS != "linux" || m.Platform.Architecture != arch {
			continue
		}
		if m.MediaType != ocispec.MediaTypeImageManifest && m.MediaType != mediaTypeDockerManifest {
			continue
		}
		return m.Digest, checkDigest(m.Digest)
	}
	return "", fmt.Errorf("no image for linux/%s", arch)
}

// ParseManifest reads an OCI or Docker schema 2 manifest: digests are well formed, sizes are not negative, there are
// between one and MaxLayers layers. The layers' media types are left to the caller.
func ParseManifest(data []byte) (*ocispec.Manifest, error) {
	var s shape
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	if s.SchemaVersion != 2 || s.Manifests != nil || s.FSLayers != nil {
		return nil, errors.New("neither an OCI manifest nor a Docker schema 2 manifest")
	}
	if s.MediaType != "" && s.MediaType != ocispec.MediaTypeImageManifest && s.MediaType != mediaTypeDockerManifest {
		return nil, fmt.Errorf("media type %.100q is not that of an image manifest", s.MediaType)
	}
	m := new(ocispec.Manifest)
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	if m.Config.MediaType != ocispec.MediaTypeImageConfig && m.Config.MediaType != mediaTypeDockerConfig {
		return nil, fmt.Errorf("config of media type %.100q: not a container image", m.Config.MediaType)
	}
	if len(m.Layers) == 0 || len(m.Layers) > MaxLayers {
		return nil, fmt.Errorf("%d layers, between 1 and %d are allowed", len(m.Layers), MaxLayers)
	}
	for i, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := checkDigest(d.Digest); err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", i, err)
		}
		if d.Size < 0 {
			return nil, fmt.Errorf("descriptor %d: size %d", i, d.Size)
		}
	}
	return m, nil
}

// parseConfig checks that an image config is for linux on arch and returns the digests of its uncompressed layers.
func parseConfig(data []byte, arch string) ([]digest.Digest, error) {
	var config ocispec.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	if config.OS != "linux" || config.Architecture != arch {
		return nil, fmt.Errorf("image is for %.20q/%.20q, this guest is linux/%s", config.OS, config.Architecture, arch)
	}
	if config.RootFS.Type != "layers" {
		return nil, fmt.Errorf("root file system of type %.20q is not made of layers", config.RootFS.Type)
	}
	for _, d := range config.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, err
		}
	}
	return config.RootFS.DiffIDs, nil
}
