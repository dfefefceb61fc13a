// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Limits on a registries.conf.
const (
	// MaxRegistriesSize is its size in bytes.
	MaxRegistriesSize = 256 << 10
	maxRegistries     = 256
	maxMirrors        = 16
)

// Errors of Registries.
var (
	// ErrBlocked means that registries.conf forbids an image.
	ErrBlocked = errors.New("image is blocked by registries.conf")
	// ErrInsecure means that a registries.conf asks for a registry to be used without checking its certificate.
	ErrInsecure = errors.New("insecure registries are not allowed in this guest")
)

// Registries says where images are really to be had. nil leaves every reference as it is.
type Registries struct {
	rules    []rule
	insecure map[string]bool
}

// rule is one [[registry]] table.
type rule struct {
	Prefix       string   `toml:"prefix"`
	Location     string   `toml:"location"`
	Insecure     bool     `toml:"insecure"`
	Blocked      bool     `toml:"blocked"`
	DigestOnly   bool     `toml:"mirror-by-digest-only"`
	Mirrors      []mirror `toml:"mirror"`
	wildcardHost string   // ".example.com" of "*.example.com"
}

// mirror is one [[registry.mirror]] table.
type mirror struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
	PullFrom string `toml:"pull-from-mirror"`
}

// ParseRegistries reads a registries.conf of version 2, see containers-registries.conf(5): [[registry]] with prefix,
// location, insecure, blocked, mirror-by-digest-only, and [[registry.mirror]] with location, insecure, pull-from-mirror.
// What concerns short names is read over, as those are refused anyway. Any other key is an error, and so is insecure
// unless allowInsecure. An empty file has no rules.
func ParseRegistries(data []byte, allowInsecure bool) (*Registries, error) {
	if len(data) > MaxRegistriesSize {
		return nil, fmt.Errorf("registries.conf is larger than %d bytes", MaxRegistriesSize)
	}
	var file struct {
		Registries  []rule            `toml:"registry"`
		Search      []string          `toml:"unqualified-search-registries"`
		ShortNames  string            `toml:"short-name-mode"`
		Aliases     map[string]string `toml:"aliases"`
		CredHelpers []string          `toml:"credential-helpers"`
	}
	decoder := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := decoder.Decode(&file); err != nil {
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
			return nil, fmt.Errorf("registries.conf: key %.100q is not supported", strings.Join(strict.Errors[0].Key(), "."))
		}
		return nil, fmt.Errorf("registries.conf: %w", err)
	}
	for _, h := range file.CredHelpers {
		if h != "containers-auth.json" {
			return nil, fmt.Errorf("registries.conf: credential helper %.100q: there is none in a guest", h)
		}
	}
	if len(file.Registries) > maxRegistries {
		return nil, fmt.Errorf("registries.conf: more than %d registries", maxRegistries)
	}
	r := &Registries{insecure: make(map[string]bool)}
	seen := make(map[string]bool)
	for _, rule := range file.Registries {
		if err := r.add(rule, allowInsecure); err != nil {
			return nil, fmt.Errorf("registries.conf: registry %.200q: %w", rule.Prefix+rule.Location, err)
		}
		prefix := r.rules[len(r.rules)-1].Prefix
		if seen[prefix] {
			return nil, fmt.Errorf("registries.conf: two registries have the prefix %.200q", prefix)
		}
		seen[prefix] = true
	}
	return r, nil
}

func (r *Registries) add(rule rule, allowInsecure bool) error {
	if rule.Prefix == "" {
		rule.Prefix = rule.Location
	}
	if host, ok := strings.CutPrefix(rule.Prefix, "*"); ok {
		if !strings.HasPrefix(host, ".") || strings.ContainsAny(host, "/*@") || len(host) < 2 {
			return errors.New("a prefix with * is of the form *.example.com")
		}
		if want, err := canonicalHost("x" + host); err != nil || want != "x"+host {
			return errors.New("a prefix with * is of the form *.example.com, in lower case, and without port 443")
		}
		rule.wildcardHost = host
	} else if err := checkLocation(rule.Prefix); err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	if rule.Location == "" && rule.wildcardHost == "" {
		return errors.New("location is missing")
	}
	if rule.Location != "" {
		if err := r.use(rule.Location, rule.Insecure, allowInsecure); err != nil {
			return err
		}
	} else if rule.Insecure {
		return errors.New("insecure needs a location")
	}
	if len(rule.Mirrors) > maxMirrors {
		return fmt.Errorf("more than %d mirrors", maxMirrors)
	}
	for _, m := range rule.Mirrors {
		if err := r.use(m.Location, m.Insecure, allowInsecure); err != nil {
			return fmt.Errorf("mirror %.200q: %w", m.Location, err)
		}
		switch m.PullFrom {
		case "", "all", "digest-only", "tag-only":
		default:
			return fmt.Errorf("mirror %.200q: pull-from-mirror is %.40q, not all, digest-only or tag-only", m.Location, m.PullFrom)
		}
		if m.PullFrom != "" && rule.DigestOnly {
			return fmt.Errorf("mirror %.200q: pull-from-mirror cannot be set beside mirror-by-digest-only", m.Location)
		}
	}
	r.rules = append(r.rules, rule)
	return nil
}

// use checks a location and notes whether it is insecure.
func (r *Registries) use(location string, insecure, allowed bool) error {
	if err := checkLocation(location); err != nil {
		return fmt.Errorf("location: %w", err)
	}
	if !insecure {
		return nil
	}
	if !allowed {
		return ErrInsecure
	}
	host, _, _ := strings.Cut(location, "/")
	r.insecure[host] = true
	return nil
}

// checkLocation accepts host[:port][/path], which has neither a tag nor a digest, in the spelling of ParseReference.
func checkLocation(s string) error {
	host, path, _ := strings.Cut(s, "/")
	if !explicitHost(host) || strings.ContainsAny(path, ":@") {
		return fmt.Errorf("%.200q is not host[:port][/path]", s)
	}
	if want, err := canonicalHost(host); err == nil && hubName(want) != host {
		return fmt.Errorf("%.200q is not host[:port][/path]: write its host as %s", s, hubName(want))
	}
	ref, err := ParseReference(s + "/x/x") // as docker.io has no image x
	if err != nil || ref.Host != host {
		return fmt.Errorf("%.200q is not host[:port][/path]", s)
	}
	return nil
}

// Places returns the references under which an image is to be looked for, in that order: the mirrors that serve such a
// reference, then its own location. The image is the same under each of them: a digest stays, and is what counts.
func (r *Registries) Places(ref Reference) ([]Reference, error) {
	if r == nil {
		return []Reference{ref}, nil
	}
	found := -1
	for i, rule := range r.rules {
		if rule.matches(ref) && (found < 0 || len(rule.Prefix) > len(r.rules[found].Prefix)) {
			found = i
		}
	}
	if found < 0 {
		return []Reference{ref}, nil
	}
	rule := r.rules[found]
	if rule.Blocked {
		return nil, fmt.Errorf("%w (prefix %s)", ErrBlocked, rule.Prefix)
	}
	var places []Reference
	for _, m := range rule.Mirrors {
		if byDigest := ref.Digest != ""; rule.DigestOnly && !byDigest || m.PullFrom == "digest-only" && !byDigest || m.PullFrom == "tag-only" && byDigest {
			continue
		}
		place, err := rule.rewrite(ref, m.Location)
		if err != nil {
			return nil, err
		}
		places = append(places, place)
	}
	own := ref
	if rule.Location != "" {
		var err error
		if own, err = rule.rewrite(ref, rule.Location); err != nil {
			return nil, err
		}
	}
	return append(places, own), nil
}

// matches tells whether a rule is about a reference: its prefix ends where a part of the name does, or, as podman has it,
// a host without its port. There, a location that does not fit is an error later.
func (r rule) matches(ref Reference) bool {
	if r.wildcardHost != "" {
		return strings.HasSuffix(ref.Host, r.wildcardHost) && len(ref.Host) > len(r.wildcardHost)
	}
	rest, ok := strings.CutPrefix(ref.Host+"/"+ref.Repository, r.Prefix)
	return ok && (rest == "" || rest[0] == '/' || rest[0] == ':')
}

// rewrite replaces the prefix by a location.
func (r rule) rewrite(ref Reference, location string) (Reference, error) {
	prefix := r.Prefix
	if r.wildcardHost != "" {
		prefix = ref.Host
	}
	to, err := ParseReference(location + strings.TrimPrefix(ref.String(), prefix))
	if err != nil {
		return Reference{}, fmt.Errorf("location %s of prefix %s: %w", location, r.Prefix, err)
	}
	return to, nil
}

// insecureHosts returns the hosts that may be used without a check of their certificate.
func (r *Registries) insecureHosts() map[string]bool {
	if r == nil {
		return nil
	}
	return r.insecure
}
