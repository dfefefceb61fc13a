// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/registry"
)

// maxImages is the number of images in an index.
const maxImages = 64

// Docker's media type of an image manifest, see its image manifest V2 schema 2.
const mediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"

// graph is all of an image but its layers.
type graph struct {
	// root describes what the location's name stands for, data has its bytes.
	root ocispec.Descriptor
	data []byte
	// index is nil if the root is a manifest.
	index *ocispec.Index
	// images are the manifests that were chosen.
	images []graphImage
	// skipped are the manifests of an index that are no images.
	skipped []ocispec.Descriptor
}

// graphImage is one manifest.
type graphImage struct {
	desc     ocispec.Descriptor
	manifest *ocispec.Manifest
}

// readGraph reads manifests and verifies their digests. With platforms (os/architecture[/variant]) it reads only those
// of an index; each has to be there.
func readGraph(ctx context.Context, s source, platforms []string) (*graph, error) {
	data, d, err := s.root(ctx)
	if err != nil {
		return nil, err
	}
	g := &graph{data: data, root: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(data))}}
	if d.Algorithm().FromBytes(data) != d {
		return nil, fmt.Errorf("manifest %s does not match its digest", d)
	}
	if !registry.IsIndex(data) {
		return g, g.addImage(data, g.root)
	}
	if g.index, err = registry.ParseIndex(data); err != nil {
		return nil, fmt.Errorf("index %s: %w", d, err)
	}
	g.root.MediaType = ocispec.MediaTypeImageIndex
	if n := len(g.index.Manifests); n > maxImages {
		return nil, fmt.Errorf("index %s has %d images, at most %d are allowed", d, n, maxImages)
	}
	if err := g.choose(ctx, s, platforms); err != nil {
		return nil, err
	}
	return g, nil
}

// choose reads the manifests of the platforms that are wanted.
func (g *graph) choose(ctx context.Context, s source, platforms []string) error {
	seen := make(map[string]bool)
	var has []string
	for _, desc := range g.index.Manifests {
		name := platformName(desc.Platform)
		has = append(has, fmt.Sprintf("%.60q", name))
		if len(platforms) > 0 && !slices.Contains(platforms, name) {
			continue
		}
		seen[name] = true
		if notImage(desc) {
			g.skipped = append(g.skipped, desc)
			continue
		}
		data, err := small(ctx, s, desc)
		if err != nil {
			return fmt.Errorf("manifest of %s: %w", name, err)
		}
		if err := g.addImage(data, desc); err != nil {
			return err
		}
	}
	for _, p := range platforms {
		if !seen[p] {
			return fmt.Errorf("index has no image for %s (it has: %s)", p, strings.Join(has[:min(len(has), 20)], ", "))
		}
	}
	if len(g.images) == 0 {
		return errors.New("index holds no image")
	}
	return nil
}

func (g *graph) addImage(data []byte, desc ocispec.Descriptor) error {
	m, err := registry.ParseManifest(data)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	g.images = append(g.images, graphImage{desc, m})
	return nil
}

// notImage says that an entry of an index is not an image that could run: the statements of origin that Docker's
// builders add have the platform unknown/unknown.
func notImage(desc ocispec.Descriptor) bool {
	if desc.MediaType != ocispec.MediaTypeImageManifest && desc.MediaType != mediaTypeDockerManifest {
		return true
	}
	return desc.Platform != nil && desc.Platform.OS == "unknown"
}

// platformName returns os/architecture[/variant], empty if there is none.
func platformName(p *ocispec.Platform) string {
	switch {
	case p == nil:
		return ""
	case p.Variant == "":
		return p.OS + "/" + p.Architecture
	default:
		return p.OS + "/" + p.Architecture + "/" + p.Variant
	}
}

// diffIDs reads an image's config and returns what it says of the layers.
func (i graphImage) diffIDs(ctx context.Context, s source) ([]byte, []digest.Digest, error) {
	config, err := small(ctx, s, i.manifest.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("config: %w", err)
	}
	ids, err := parseDiffIDs(config)
	if err == nil && len(ids) != len(i.manifest.Layers) {
		err = fmt.Errorf("config has %d layers, manifest %s %d", len(ids), i.desc.Digest, len(i.manifest.Layers))
	}
	return config, ids, err
}
