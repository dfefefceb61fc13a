// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sign

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"

	"go.podman.io/image/v5/docker/policyconfiguration"
	"go.podman.io/image/v5/docker/reference"
	"go.yaml.in/yaml/v3"
)

// lookaside says where signatures are kept beside registries, see containers-registries.d(5).
type lookaside struct {
	DefaultDocker *namespace           `yaml:"default-docker"`
	Docker        map[string]namespace `yaml:"docker"`
}

type namespace struct {
	Lookaside       string `yaml:"lookaside"`
	SigStore        string `yaml:"sigstore"` // the old name of lookaside
	Staging         string `yaml:"lookaside-staging"`
	SigStoreStaging string `yaml:"sigstore-staging"`
	Attachments     *bool  `yaml:"use-sigstore-attachments"`
}

func parseLookaside(data []byte) (lookaside, error) {
	var l lookaside
	if len(data) > MaxPolicySize {
		return l, fmt.Errorf("larger than %d bytes", MaxPolicySize)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&l); err != nil && !errors.Is(err, io.EOF) {
		return lookaside{}, fmt.Errorf("parse: %w", err)
	}
	if err := dec.Decode(new(lookaside)); !errors.Is(err, io.EOF) {
		return lookaside{}, errors.New("more than one YAML document")
	}
	namespaces := []namespace{}
	if l.DefaultDocker != nil {
		namespaces = append(namespaces, *l.DefaultDocker)
	}
	for _, n := range l.Docker {
		namespaces = append(namespaces, n)
	}
	for _, n := range namespaces {
		for _, s := range []string{n.Lookaside, n.SigStore} {
			if _, err := parseBase(s); s != "" && err != nil {
				return lookaside{}, err
			}
		}
	}
	return l, nil
}

func parseBase(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil, errors.New("a lookaside store is not a plain https URL") // the URL could hold a password
	}
	return u, nil
}

// find returns the first setting that a namespace of ref has, the narrowest namespace first.
func find[T comparable](l lookaside, ref reference.Named, get func(namespace) T) T {
	var none T
	identity, err := policyconfiguration.DockerReferenceIdentity(ref)
	if err != nil { // parseReference returns no such reference
		return none
	}
	for _, name := range append([]string{identity}, policyconfiguration.DockerReferenceNamespaces(ref)...) {
		if n, ok := l.Docker[name]; ok {
			if v := get(n); v != none {
				return v
			}
		}
	}
	if l.DefaultDocker == nil {
		return none
	}
	return get(*l.DefaultDocker)
}

// attachments tells whether the registry is asked for signatures.
func (l lookaside) attachments(ref reference.Named) bool {
	use := find(l, ref, func(n namespace) *bool { return n.Attachments })
	return use == nil || *use
}

// base returns the URL under which the store keeps the signatures of a manifest, empty if there is no store.
func (l lookaside) base(r request) (string, error) {
	s := find(l, r.scopeOf, func(n namespace) string {
		if n.Lookaside != "" {
			return n.Lookaside
		}
		return n.SigStore
	})
	if s == "" {
		return "", nil
	}
	u, err := parseBase(s)
	if err != nil {
		return "", err
	}
	u.Path += fmt.Sprintf("/%s@%s=%s", reference.Path(r.ref), r.digest.Algorithm(), r.digest.Encoded())
	u.RawPath = ""
	return u.String(), nil
}
