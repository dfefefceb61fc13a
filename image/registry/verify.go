// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// ErrDigest means that what came is not what was asked for.
var ErrDigest = errors.New("content does not match its digest")

// verified reads a blob and keeps io.EOF back until size and digest are right.
type verified struct {
	rc   io.ReadCloser
	want digest.Digest
	size int64 // -1: not known
	hash hash.Hash
	n    int64
	err  error
	// explain makes sense of what rc returns; nil leaves it as it is.
	explain func(error) error
}

func (v *verified) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.rc.Read(p)
	v.hash.Write(p[:n])
	v.n += int64(n)
	switch {
	case v.size >= 0 && (v.n > v.size || errdefs.IsFailedPrecondition(err)): // containerd's own word for too much
		v.err = fmt.Errorf("blob %s is larger than the %d bytes that its manifest says: %w", v.want, v.size, ErrDigest)
		return 0, v.err
	case errors.Is(err, io.EOF):
		v.err = v.verify()
	case err != nil:
		v.err = err
		if v.explain != nil {
			v.err = v.explain(err)
		}
	}
	return n, v.err
}

func (v *verified) verify() error {
	if v.size >= 0 && v.n != v.size {
		return fmt.Errorf("blob %s has %d bytes, its manifest says %d: %w", v.want, v.n, v.size, ErrDigest)
	}
	if got := hex.EncodeToString(v.hash.Sum(nil)); got != v.want.Encoded() {
		return fmt.Errorf("blob %s has digest %s: %w", v.want, got, ErrDigest)
	}
	return io.EOF
}

func (v *verified) Close() error { return v.rc.Close() }
