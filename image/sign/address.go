// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sign

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// checkAddress is Check for a registry that is named by an IPv6 address. The library knows no such references, so nothing
// but what needs no signature is allowed.
func (p *Policy) checkAddress(ref string, d digest.Digest) error {
	scopes, err := addressScopes(ref, d)
	if err != nil {
		return err
	}
	if p == nil || p.rules == nil {
		return reject(ErrRejected, "", "there is no policy")
	}
	scope, reqs := p.rules.first(scopes)
	switch needs(reqs) {
	case needNothing:
		return nil
	case needRefusal:
		return reject(ErrRejected, scope, "the policy rejects every image here")
	default:
		return reject(ErrRejected, scope, "it asks for signatures, which are not supported for a registry named by an IPv6 address: give it a host name")
	}
}

// addressScopes returns the scopes of a reference, the narrowest first: itself, its repository and the folders above, its
// host.
func addressScopes(ref string, d digest.Digest) ([]string, error) {
	if err := checkDigest(d); err != nil {
		return nil, fmt.Errorf("verify %.200s: %w", ref, err)
	}
	named, err := reference.ParseNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %.200q: %w", ref, err)
	}
	scopes := make([]string, 1, 4)
	switch r := named.(type) {
	case reference.Digested:
		if r.Digest() != d {
			return nil, fmt.Errorf("verify %.200s: the manifest has digest %s", ref, d)
		}
		scopes[0] = named.Name() + "@" + d.String()
	case reference.Tagged:
		scopes[0] = named.Name() + ":" + r.Tag()
	default:
		return nil, fmt.Errorf("image reference %.200q has neither a tag nor a digest", ref)
	}
	host := reference.Domain(named)
	for name := named.Name(); name != host; name = name[:strings.LastIndexByte(name, '/')] {
		scopes = append(scopes, name)
	}
	return append(scopes, host), nil
}
