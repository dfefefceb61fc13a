// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// MaxReferenceSize bounds an image reference, in bytes.
const MaxReferenceSize = 1024

// Reference is an image reference with an explicit registry, see ParseReference.
type Reference struct {
	// Host is the registry's host, with a port unless that is 443.
	Host string
	// Repository is the path of the image in the registry.
	Repository string
	// Tag is empty where Digest is not.
	Tag string
	// Digest is empty where the reference has none.
	Digest digest.Digest
}

// ParseReference reads host[:port]/repository[:tag][@digest]. A reference without a registry host is refused: which
// registry a short name means must not be guessed inside the guest. A digest overrides the tag; without both the tag
// is "latest".
//
// There is one spelling of an image only, as policies and registries.conf compare texts: a host in lower case, IPv6
// addresses as RFC 5952 has them, no zeros before a port, no port 443. Docker Hub is docker.io, not one of the hosts
// behind that name, and its official images are docker.io/library/name, not docker.io/name.
func ParseReference(s string) (Reference, error) {
	if len(s) > MaxReferenceSize {
		return Reference{}, fmt.Errorf("image reference is longer than %d bytes", MaxReferenceSize)
	}
	parsed, err := reference.Parse(s)
	if err != nil {
		return Reference{}, fmt.Errorf("image reference %q: %w", s, err)
	}
	named, ok := parsed.(reference.Named)
	if !ok {
		return Reference{}, fmt.Errorf("image reference %q has no name", s)
	}
	r := Reference{Host: reference.Domain(named), Repository: reference.Path(named)}
	if !explicitHost(r.Host) {
		return Reference{}, fmt.Errorf("image reference %q does not name its registry: write host/repository:tag, for instance docker.io/library/%s", s, s)
	}
	if err := checkName(r.Host, r.Repository); err != nil {
		return Reference{}, fmt.Errorf("image reference %q: %w", s, err)
	}
	if digested, ok := parsed.(reference.Digested); ok {
		r.Digest = digested.Digest()
		if err := checkDigest(r.Digest); err != nil {
			return Reference{}, fmt.Errorf("image reference %q: %w", s, err)
		}
		return r, nil
	}
	r.Tag = "latest"
	if tagged, ok := parsed.(reference.Tagged); ok {
		r.Tag = tagged.Tag()
	}
	return r, nil
}

// checkName refuses other spellings of a repository's name than the one that there is.
func checkName(host, repository string) error {
	want, err := canonicalHost(host)
	if err != nil {
		return err
	}
	if want = hubName(want); want != host {
		return fmt.Errorf("write its registry's host as %s", want)
	}
	if host == "docker.io" && !strings.Contains(repository, "/") {
		return fmt.Errorf("write docker.io/library/%s", repository)
	}
	return nil
}

// explicitHost applies the rule by which Docker tells a host from the first part of a short name's path.
func explicitHost(s string) bool {
	return strings.ContainsAny(s, ".:") || s == "localhost"
}

// canonicalHost returns host[:port] in the spelling that ParseReference wants.
func canonicalHost(s string) (string, error) {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		n, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil || n == 0 {
			return "", fmt.Errorf("%.100q has no valid port", s)
		}
		host = s[:i]
		if n != 443 { // the port of https is the same host without it
			port = ":" + strconv.FormatUint(n, 10)
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !strings.HasSuffix(inner, "]") || !addr.Is6() || addr.Is4In6() || addr.Zone() != "" {
			return "", fmt.Errorf("%.100q has no valid IPv6 address", s)
		}
		return "[" + addr.String() + "]" + port, nil
	}
	if strings.Trim(strings.ToLower(host), "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" || strings.Trim(host, ".") == "" || len(host) > 255 {
		return "", fmt.Errorf("%.100q is not a registry's host", s)
	}
	return strings.ToLower(host) + port, nil
}

// String returns the reference as ParseReference reads it.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Host + "/" + r.Repository + "@" + r.Digest.String()
	}
	return r.Host + "/" + r.Repository + ":" + r.Tag
}

// checkDigest accepts sha256 and sha512 digests that are well formed.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.200q: %w", string(d), err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return errors.New("digest algorithm is neither sha256 nor sha512")
	}
	return nil
}
