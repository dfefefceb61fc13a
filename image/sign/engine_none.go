// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build !containers_image_openpgp

package sign

import (
	"context"
	"errors"
)

// errNoSignatures is why this build refuses a policy.
var errNoSignatures = errors.New("signatures are asked for, and this program was built without the tag containers_image_openpgp that verifying them needs")

// engine verifies nothing. A policy that would need it cannot be loaded.
type engine struct{}

func newEngine(r *rules, _ map[string][]byte, _ string) (*engine, error) {
	for _, req := range r.all() {
		if kind := req.kind(); kind != kindAccept && kind != kindReject {
			return nil, errNoSignatures
		}
	}
	return &engine{}, nil
}

func (*engine) evaluate(context.Context, request, []byte, []rawSignature) (reason, err error) {
	return nil, errNoSignatures
}
