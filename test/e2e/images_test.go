// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/test/story"
)

// images are what the story's registries hold.
type images struct {
	good string
	bad  []badImage
}

// badImage is an image that the guest must refuse, and what its error says.
type badImage struct{ name, ref, want string }

// pushImages fills the registries: one image that can be run, and what a hostile registry would offer.
func (w *world) pushImages(t *testing.T) images {
	t.Helper()
	push := func(r *story.Registry, name, uri, key string) string {
		t.Helper()
		ref, err := w.PushImage(t.Context(), r, story.Image{
			Name: name, Files: map[string]string{"etc/secret": secret + "\n"}, KeyURI: uri, KeyFile: key,
		})
		must(t, err)
		return ref
	}
	stranger, err := story.NewImageKey(filepath.Join(t.TempDir(), "stranger.key"))
	must(t, err)
	other, err := w.NewRegistry(t.Context(), "other-registry")
	must(t, err)
	t.Cleanup(func() { must(t, other.Stop()) })
	flipped := push(w.Registry, "flipped", imageURI, w.imageKey)
	w.flipLayer(t, "flipped")
	good := push(w.Registry, "good", imageURI, w.imageKey)
	return images{
		good: good,
		bad: []badImage{
			{"image key missing", push(w.Registry, "no-key", unknownURI, stranger), unknownURI},
			{"image key wrong", push(w.Registry, "wrong-key", imageURI, stranger), "key"},
			{"bit flipped in layer", flipped, "digest"},
			{"registry with wrong certificate", push(other, "other-ca", imageURI, w.imageKey), "certificate"},
			{"unknown image", w.Registry.Host(story.GuestHost) + "/story/absent:1", "not found"},
			{"short name", "busybox", "registry"},
		},
	}
}

// flipLayer changes one bit in the middle of the layer of an image that PushImage made, in the registry's own store.
func (w *world) flipLayer(t *testing.T, name string) {
	t.Helper()
	dir := filepath.Join(w.Dir, "image-"+name, "layout-encrypted")
	var index ocispec.Index
	readJSON(t, filepath.Join(dir, "index.json"), &index)
	var manifest ocispec.Manifest
	readJSON(t, filepath.Join(dir, "blobs/sha256", index.Manifests[0].Digest.Encoded()), &manifest)
	layer := manifest.Layers[0]
	f, err := os.OpenFile(w.Registry.Blob(layer.Digest), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	flip(t, f, layer.Size/2)
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	must(t, json.Unmarshal(data, v))
}

// decoy makes a disk of random-looking bytes that the guest must pass over.
func decoy(t *testing.T, size int) string {
	t.Helper()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i*7 + i>>8)
	}
	path := filepath.Join(t.TempDir(), "decoy.img")
	must(t, os.WriteFile(path, data, 0o600))
	return path
}
