// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/sign"
)

// maxVerified bounds the decisions that are remembered. All are dropped when there are more.
const maxVerified = 1024

// decision is what a policy is asked about.
type decision struct {
	reference string
	digest    digest.Digest
}

// verify asks the policy about a reference and the digest of an index or manifest. That it allowed both stays true: the
// policy does not change, and what a registry does not show any more it may have hidden. So an image that is here is
// there for the next container, too, when the registry cannot be reached.
func (s *Service) verify(ctx context.Context, ref registry.Reference, d digest.Digest) error {
	asked := decision{ref.String(), d}
	s.mu.Lock()
	_, known := s.verified[asked]
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := s.config.Policy.CheckImage(ctx, ref.String(), d, s.manifestOf(ref, d), sign.FromRegistry(s.registry)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.verified) >= maxVerified {
		clear(s.verified)
	}
	s.verified[asked] = struct{}{}
	return nil
}

// manifestOf returns what finds the manifest for this guest in what d stands for.
func (s *Service) manifestOf(ref registry.Reference, d digest.Digest) func(context.Context) (digest.Digest, error) {
	return func(ctx context.Context) (digest.Digest, error) {
		// Not by s.image: what the policy may not allow is not kept.
		img, err := s.registry.Image(ctx, ref, d, s.config.Arch)
		if err != nil {
			return "", err
		}
		return img.Manifest, nil
	}
}
