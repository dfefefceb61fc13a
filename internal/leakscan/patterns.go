// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package leakscan

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Limits of secrets.
const (
	// MinSecret is the smallest size of a secret in bytes: a shorter one is found by chance.
	MinSecret = 16
	// MaxSecret is the largest.
	MaxSecret = 64 << 10
	// minDistinct is how many different bytes a secret must have at least.
	minDistinct = 8
	// maxSecrets bounds their number.
	maxSecrets = 256
)

// Secret is what is looked for.
type Secret struct {
	// Name stands for it in reports.
	Name string
	// Value is the secret, MinSecret to MaxSecret bytes that do not repeat.
	Value []byte
}

// pattern is one form of a secret.
type pattern struct {
	secret   string
	encoding string
	bytes    string
}

// patterns returns every form of the secrets.
func patterns(secrets []Secret) ([]pattern, error) {
	if len(secrets) == 0 || len(secrets) > maxSecrets {
		return nil, fmt.Errorf("%d secrets are not 1 to %d", len(secrets), maxSecrets)
	}
	var out []pattern
	names := make(map[string]bool)
	for _, s := range secrets {
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("secret %q: %w", s.Name, err)
		}
		if names[s.Name] {
			return nil, fmt.Errorf("secret %q is given twice", s.Name)
		}
		names[s.Name] = true
		out = append(out, s.forms()...)
	}
	return out, nil
}

func (s Secret) check() error {
	if s.Name == "" {
		return errors.New("it has no name")
	}
	if len(s.Value) < MinSecret || len(s.Value) > MaxSecret {
		return fmt.Errorf("%d bytes are not %d to %d", len(s.Value), MinSecret, MaxSecret)
	}
	distinct := make(map[byte]bool)
	for _, b := range s.Value {
		distinct[b] = true
	}
	if len(distinct) < minDistinct {
		return fmt.Errorf("only %d different bytes: it would be found by chance", len(distinct))
	}
	return nil
}

// forms returns the encodings of a secret, each once.
func (s Secret) forms() []pattern {
	digits := hex.EncodeToString(s.Value)
	all := []pattern{
		{s.Name, "raw", string(s.Value)},
		{s.Name, "hex", digits},
		{s.Name, "hex", strings.ToUpper(digits)},
	}
	for shift := range 3 {
		all = append(all,
			pattern{s.Name, "base64", base64Core(base64.RawStdEncoding, s.Value, shift)},
			pattern{s.Name, "base64url", base64Core(base64.RawURLEncoding, s.Value, shift)})
	}
	seen := make(map[string]bool)
	out := all[:0]
	for _, p := range all {
		if !seen[p.bytes] {
			seen[p.bytes] = true
			out = append(out, p)
		}
	}
	return out
}

// base64Core returns the characters of an encoding that depend on the secret alone, when it begins shift bytes after a
// group's start.
func base64Core(e *base64.Encoding, value []byte, shift int) string {
	text := e.EncodeToString(append(make([]byte, shift), value...))
	first := []int{0, 2, 3}[shift] // characters that depend on what comes before
	if (shift+len(value))%3 != 0 {
		text = text[:len(text)-1] // the last depends on what comes after
	}
	return text[first:]
}
