// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package keys

import (
	"fmt"
	"log/slog"
	"runtime"
)

// redacted is what every way of printing a Secret shows.
const redacted = "[secret]"

// Secret holds key material. It cannot be printed, logged or marshalled, and its owner wipes it after use.
// The zero value is an empty secret.
type Secret struct{ b []byte }

// NewSecret takes ownership of b: the caller must not use b afterwards.
func NewSecret(b []byte) *Secret { return &Secret{b: b} }

// Bytes returns the secret itself, not a copy: it is valid until Wipe, and whoever copies it must wipe the copy.
func (s *Secret) Bytes() []byte {
	if s == nil {
		return nil
	}
	return s.b
}

// Clone returns a copy that has to be wiped by itself.
func (s *Secret) Clone() *Secret { return NewSecret(append([]byte(nil), s.Bytes()...)) }

// Wipe overwrites the secret with zeros and empties it. It may be called more than once, and on nil.
func (s *Secret) Wipe() {
	if s == nil {
		return
	}
	Wipe(s.b)
	s.b = nil
}

// Wipe overwrites b with zeros.
func Wipe(b []byte) {
	clear(b)
	runtime.KeepAlive(&b) // the stores must not be dropped as dead
}

// String, GoString, Format, LogValue, MarshalText and MarshalJSON never show the secret.

// String implements fmt.Stringer.
func (s *Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (s *Secret) GoString() string { return redacted }

// Format implements fmt.Formatter, so that no verb (not even %x) shows the secret.
func (s *Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue implements slog.LogValuer.
func (s *Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler.
func (s *Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements json.Marshaler.
func (s *Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
