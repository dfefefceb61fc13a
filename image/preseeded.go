// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/image/registry"
)

// Preseeded is an image that lies in the guest's root file system. Mount uses it where a reference names its repository
// and either the same tag or, by digest, the image. No registry and no policy is asked: who sealed the guest chose this
// very content, and the disk's root hash holds it to that. The tag stands for it as long as the guest runs.
type Preseeded struct {
	// Reference is the image's, in its canonical form, see registry.Reference.
	Reference string
	// Digest is what the reference stood for when the guest was built: of an index or a manifest. Manifest is the digest
	// of the manifest.
	Digest, Manifest string
	// Rootfs is the folder of its root file system.
	Rootfs string
}

// preseeded is a Preseeded whose texts are understood.
type preseeded struct {
	ref              registry.Reference
	digest, manifest digest.Digest
	rootfs           string
}

func parsePreseeded(all []Preseeded) ([]preseeded, error) {
	out := make([]preseeded, 0, len(all))
	for _, p := range all {
		ref, err := registry.ParseReference(p.Reference)
		if err != nil {
			return nil, fmt.Errorf("image in the root disk: %w", err)
		}
		if ref.String() != p.Reference || p.Rootfs == "" {
			return nil, fmt.Errorf("image %s in the root disk: reference is not canonical, or no folder is given", p.Reference)
		}
		found := preseeded{ref, digest.Digest(p.Digest), digest.Digest(p.Manifest), p.Rootfs}
		for _, d := range []digest.Digest{found.digest, found.manifest} {
			if err := d.Validate(); err != nil {
				return nil, fmt.Errorf("image %s in the root disk: digest %.200q: %w", ref, string(d), err)
			}
		}
		out = append(out, found)
	}
	return out, nil
}

// findPreseeded returns the image of the root disk that a reference names, or nil.
func (s *Service) findPreseeded(ref registry.Reference) *preseeded {
	for i := range s.baked {
		p := &s.baked[i]
		if p.ref.Host != ref.Host || p.ref.Repository != ref.Repository {
			continue
		}
		if ref.Digest != "" && (ref.Digest == p.digest || ref.Digest == p.manifest) || ref.Digest == "" && ref.Tag == p.ref.Tag {
			return p
		}
	}
	return nil
}

// mountPreseeded mounts an image of the root disk. If it is not there, the guest is not what was sealed: the registry's
// image never takes its place.
func (s *Service) mountPreseeded(ctx context.Context, containerID, target string, ref registry.Reference, p *preseeded) (string, error) {
	d := p.digest
	if ref.Digest != "" {
		d = ref.Digest
	}
	// The disk's root hash covers all of it, so that nothing has to be verified again.
	info, err := os.Lstat(p.rootfs)
	if err != nil {
		return "", fmt.Errorf("image %s (%s) is not in the root disk: %w", ref, d, err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("image %s (%s) is not in the root disk: %s is not a folder", ref, d, p.rootfs)
	}
	s.config.Log.Info("image of the root disk is used", "reference", ref.String(), "digest", d.String(), "manifest", p.manifest.String())
	if err := s.config.Measure(ctx, ref.String(), d.String()); err != nil {
		return "", fmt.Errorf("image %s (%s) of the root disk cannot be measured: %w", ref, d, err)
	}
	if err := s.store.MountDir(containerID, target, p.rootfs); err != nil {
		return "", fmt.Errorf("image %s (%s) of the root disk: %w", ref, d, err)
	}
	return d.String(), nil
}
