// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build !containers_image_openpgp

package sign

import (
	"errors"
	"testing"
)

// A policy that this build cannot keep is no policy that it may have.
func TestSignaturesAreRefused(t *testing.T) {
	for _, policy := range []string{
		`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyData":"eA=="}]}`,
		`{"default":[{"type":"insecureAcceptAnything"},{"type":"sigstoreSigned","keyData":"eA=="}]}`,
		`{"default":[{"type":"reject"}],"transports":{"docker":{"a.example":[{"type":"sigstoreSigned","keyPath":"/k"}]}}}`,
	} {
		p, err := New(Config{Policy: []byte(policy), Keys: map[string][]byte{"/k": {1}}, TempDir: t.TempDir()})
		if !errors.Is(err, errNoSignatures) || p != nil {
			t.Errorf("%s: %v, %v", policy, p, err)
		}
	}
}
