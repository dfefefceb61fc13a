// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sign

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"go.podman.io/image/v5/docker/policyconfiguration"
	"go.podman.io/image/v5/docker/reference"
)

// maxDepth bounds how deep a policy's JSON may nest; a sound one needs 6.
const maxDepth = 16

// Kinds of requirements.
const (
	kindAccept   = "insecureAcceptAnything"
	kindReject   = "reject"
	kindSignedBy = "signedBy"
	kindSigstore = "sigstoreSigned"
)

// rules is a policy.json in which each kind of requirement is known; what the requirements say is left to the engine.
type rules struct {
	Default    []requirement                       `json:"default"`
	Transports map[string]map[string][]requirement `json:"transports,omitempty"`
}

// requirement is one object of a policy. Its keys are unique.
type requirement map[string]json.RawMessage

// parseRules reads a policy. Requirements that need no signature are known to be sound then.
func parseRules(data []byte) (*rules, error) {
	if len(data) > MaxPolicySize {
		return nil, fmt.Errorf("larger than %d bytes", MaxPolicySize)
	}
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	if err := checkJSON(data); err != nil {
		return nil, err
	}
	// The maps are exact about letter case and about null, unlike structs.
	var top map[string]json.RawMessage
	if err := json.Unmarshal(data, &top); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	r := &rules{}
	for name, value := range top {
		var err error
		switch name {
		case "default":
			err = json.Unmarshal(value, &r.Default)
		case "transports":
			if err = json.Unmarshal(value, &r.Transports); err == nil && r.Transports == nil {
				err = errors.New("not an object")
			}
		default:
			err = errors.New("unknown field")
		}
		if err != nil {
			return nil, fmt.Errorf("%.100q: %w", name, err)
		}
	}
	if err := checkRequirements(r.Default); err != nil {
		return nil, fmt.Errorf("default: %w", err)
	}
	for transport, scopes := range r.Transports {
		if scopes == nil {
			return nil, fmt.Errorf("transport %.100q: not an object", transport)
		}
		for scope, reqs := range scopes {
			if err := checkRequirements(reqs); err != nil {
				return nil, fmt.Errorf("transport %.100q, scope %.200q: %w", transport, scope, err)
			}
		}
	}
	return r, nil
}

// checkJSON makes sure that data is one JSON value in which no object has a key twice: JSON's own decoder takes the last
// one silently.
func checkJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := checkValue(dec, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the end of the JSON value")
	}
	return nil
}

func checkValue(dec *json.Decoder, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested more than %d deep", maxDepth)
	}
	token, err := dec.Token()
	if err != nil {
		return fmt.Errorf("parse: %w", err)
	}
	open, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	seen := make(map[string]bool)
	for dec.More() {
		if open == '{' {
			token, err := dec.Token()
			if err != nil {
				return fmt.Errorf("parse: %w", err)
			}
			key, _ := token.(string) // the decoder allows nothing else here
			if seen[key] {
				return fmt.Errorf("key %.100q is there twice", key)
			}
			seen[key] = true
		}
		if err := checkValue(dec, depth+1); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil { // the closing one
		return fmt.Errorf("parse: %w", err)
	}
	return nil
}

func checkRequirements(reqs []requirement) error {
	if len(reqs) == 0 {
		return errors.New("list of requirements is missing or empty")
	}
	for i, req := range reqs {
		switch kind := req.kind(); kind {
		case kindAccept, kindReject:
			if len(req) != 1 {
				return fmt.Errorf("requirement %d: unknown field in %s", i, kind)
			}
		case kindSignedBy, kindSigstore:
		case "":
			return fmt.Errorf("requirement %d has no type", i)
		default:
			return fmt.Errorf("requirement %d: type %.100q is not supported", i, kind)
		}
	}
	return nil
}

// kind returns a requirement's type, empty if it has none.
func (r requirement) kind() string {
	kind, _ := r.text("type")
	return kind
}

// text returns a field that is a string.
func (r requirement) text(name string) (string, error) {
	var s *string
	if err := json.Unmarshal(r[name], &s); err != nil || s == nil {
		return "", fmt.Errorf("%s is not a string", name)
	}
	return *s, nil
}

// texts returns a field that is a list of strings.
func (r requirement) texts(name string) ([]string, error) {
	var list []*string
	if err := json.Unmarshal(r[name], &list); err != nil || len(list) == 0 || slices.Contains(list, nil) {
		return nil, fmt.Errorf("%s is not a list of strings", name)
	}
	texts := make([]string, len(list))
	for i, s := range list {
		texts[i] = *s
	}
	return texts, nil
}

// of returns the requirements for a reference, and the scope that they are those of: the narrowest of the docker
// transport that the reference is in.
func (r *rules) of(ref reference.Named) (scope string, reqs []requirement) {
	identity, err := policyconfiguration.DockerReferenceIdentity(ref)
	if err != nil { // parseReference returns no such reference
		return "no scope", []requirement{{"type": json.RawMessage(`"` + kindReject + `"`)}}
	}
	return r.first(append([]string{identity}, policyconfiguration.DockerReferenceNamespaces(ref)...))
}

// first returns the requirements of the first scope that there is.
func (r *rules) first(scopes []string) (scope string, reqs []requirement) {
	docker := r.Transports["docker"]
	for _, s := range scopes {
		if reqs, ok := docker[s]; ok {
			return fmt.Sprintf("scope %q", s), reqs
		}
	}
	if reqs, ok := docker[""]; ok {
		return `scope ""`, reqs
	}
	return "default", r.Default
}

// need says what has to be fetched to decide.
type need int

const (
	// needRefusal is the zero value: the image is refused, whatever signatures it has.
	needRefusal need = iota
	needNothing
	// needSimple: signatures in the simple signing format, from the lookaside store.
	needSimple
	// needSigstore: signatures from the lookaside store and from the registry.
	needSigstore
)

// needs returns what a list of requirements asks for, all of which must be met.
func needs(reqs []requirement) need {
	if len(reqs) == 0 {
		return needRefusal
	}
	most := needNothing
	for _, req := range reqs {
		switch req.kind() {
		case kindAccept:
		case kindSignedBy:
			most = max(most, needSimple)
		case kindSigstore:
			most = max(most, needSigstore)
		default:
			return needRefusal
		}
	}
	return most
}

// all returns every requirement of every transport: one that is never asked must be sound, too.
func (r *rules) all() []requirement {
	all := slices.Clone(r.Default)
	for _, scopes := range r.Transports {
		for _, reqs := range scopes {
			all = append(all, reqs...)
		}
	}
	return all
}

// keyNames returns the names of key files.
func (r *rules) keyNames() ([]string, error) {
	var names []string
	for _, req := range r.all() {
		more, err := req.keyNames()
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// keyNames returns what the fields have whose names end in Path or Paths, in a requirement and the objects in it.
func (r requirement) keyNames() ([]string, error) {
	var names []string
	for field, value := range r {
		var more []string
		var inner requirement
		var err error
		switch {
		case strings.HasSuffix(field, "Path"):
			more = make([]string, 1)
			more[0], err = r.text(field)
		case strings.HasSuffix(field, "Paths"):
			more, err = r.texts(field)
		case json.Unmarshal(value, &inner) == nil:
			more, err = inner.keyNames()
		}
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	return names, nil
}
