// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
)

// Docker's media types, as in its image manifest V2 schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	ociForeign     = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// layerTypes lists the media types of layers, with how they are compressed.
var layerTypes = map[string]string{
	ocispec.MediaTypeImageLayer: "none", ocispec.MediaTypeImageLayerGzip: "gzip", ocispec.MediaTypeImageLayerZstd: "zstd",
	ociForeign: "none", ociForeign + "+gzip": "gzip", ociForeign + "+zstd": "zstd",
	dockerLayer: "none", dockerLayer + ".gzip": "gzip", dockerLayer + ".zstd": "zstd", dockerForeign: "none", dockerForeign + ".gzip": "gzip",
}

// publish stores an image of one layer as OCI or Docker have it, and in an index of both for other machines if it is to.
func publish(t *testing.T, r *registrytest.Registry, l built, docker, index bool) {
	t.Helper()
	config := func(arch string) ocispec.Descriptor {
		data, err := json.Marshal(ocispec.Image{
			Platform: ocispec.Platform{Architecture: arch, OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.diffID}},
		})
		if err != nil {
			t.Fatal(err)
		}
		mediaType := ocispec.MediaTypeImageConfig
		if docker {
			mediaType = dockerConfig
		}
		return r.AddBlob(mediaType, data)
	}
	manifestType, indexType := ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	if docker {
		manifestType, indexType = dockerManifest, dockerList
	}
	manifest := func(tag, arch string) ocispec.Descriptor {
		d := r.AddManifest(t, tag, manifestType, map[string]any{
			"schemaVersion": 2, "mediaType": manifestType, "config": config(arch), "layers": []ocispec.Descriptor{l.desc},
		})
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		return d
	}
	if !index {
		manifest("v1", arch)
		return
	}
	r.AddManifest(t, "v1", indexType, map[string]any{
		"schemaVersion": 2, "mediaType": indexType, "manifests": []ocispec.Descriptor{manifest("", "arm64"), manifest("", arch)},
	})
}

func TestMediaTypes(t *testing.T) {
	needRoot(t)
	key := bytes.Repeat([]byte{7}, 32)
	for mediaType, kind := range layerTypes {
		for _, encrypted := range []bool{false, true} {
			for _, docker := range []bool{false, true} {
				for _, index := range []bool{false, true} {
					name := strings.TrimPrefix(mediaType, "application/vnd.")
					if encrypted {
						name += "+encrypted"
					}
					if docker {
						name += " in docker"
					}
					if index {
						name += " index"
					}
					t.Run(name, func(t *testing.T) {
						r := registrytest.New(t)
						var k []byte
						if encrypted {
							k = key
						}
						l := build(t, r, kind, tarball(t, map[string]string{"f": "x"}), k)
						l.desc.MediaType = mediaType
						if encrypted {
							l.desc.MediaType += "+encrypted"
						}
						publish(t, r, l, docker, index)
						s, m := service(t, r, func(c *Config) { c.Keys = keyring(key) })
						if err := mount(t.Context(), s, "c1", r.Reference("v1"), "/c1"); err != nil {
							t.Fatal(err)
						}
						if got := m.read(t, "/c1", "f"); got != "x" {
							t.Errorf("f is %q", got)
						}
					})
				}
			}
		}
	}
}
