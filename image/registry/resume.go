// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// source opens a blob at one place, from an offset on. Without ranges it is opened at its beginning and read up to there.
type source struct {
	ref  Reference
	open func(offset int64, ranges bool) (io.ReadCloser, *watch, error)
}

// resumer reads a blob of a known size from the first of its sources, and after a failure goes on where it was: there
// again after a pause, or, where that is of no use, at the next source. What it puts together is judged by its reader,
// by the digest: that is what a blob is named by, so there is no need to compare ETags.
type resumer struct {
	sources  []source
	size     int64
	attempts int
	wait     func(ref Reference, failures int, err error) error
	final    func(err error) bool

	body     io.ReadCloser // nil: not open
	watch    *watch
	offset   int64 // of the next byte
	fresh    int64 // bytes since the last failure
	failures int   // in a row
	whole    bool  // the source does not do ranges
	failure  error // seen, and not dealt with yet
	err      error // for good
}

// Read implements io.Reader. It returns bytes before it deals with the failure that came with them.
func (r *resumer) Read(p []byte) (int, error) {
	for r.err == nil {
		if r.failure != nil {
			r.err, r.failure = r.recover(r.failure), nil
			continue
		}
		if r.body == nil {
			body, w, err := r.sources[0].open(r.offset, !r.whole)
			if err != nil {
				r.failure = err
				continue
			}
			r.body, r.watch = body, w
		}
		r.watch.start()
		n, err := r.body.Read(p)
		r.watch.pause()
		r.offset += int64(n)
		r.fresh += int64(n)
		if errors.Is(err, io.EOF) && r.offset >= r.size {
			r.err = io.EOF
		} else if err != nil {
			r.failure = r.watch.explain(err)
		}
		if n > 0 || err == nil {
			return n, nil
		}
	}
	return 0, r.err
}

// recover returns nil when it is time for the next attempt, and an error when there is none.
func (r *resumer) recover(err error) error {
	_ = r.Close() // it has failed already
	none := r.fresh == 0
	if r.fresh >= enough {
		r.failures = 0
	}
	r.fresh = 0
	r.failures++
	s, isStatus := errors.AsType[remoteserrors.ErrUnexpectedStatus](err)
	switch {
	case isStatus && s.StatusCode == http.StatusRequestedRangeNotSatisfiable && r.offset > 0 && !r.whole:
		r.whole = true // a server that is wrong about ranges may be right about the blob
		return nil
	case errors.Is(err, io.EOF) && none:
		return r.next(err) // this source has no more: the reader's digest will not match
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	case r.final(err):
		return r.next(err)
	}
	attempts := r.attempts
	if len(r.sources) > 1 {
		attempts = min(attempts, mirrorAttempts)
	}
	if r.failures >= attempts {
		return r.next(gaveUp(r.failures, err))
	}
	return r.wait(r.sources[0].ref, r.failures, err)
}

// next goes on with the next source, if there is one.
func (r *resumer) next(err error) error {
	if len(r.sources) == 1 {
		return err
	}
	r.sources, r.failures, r.whole = r.sources[1:], 0, false
	return nil
}

// Close drops the connection.
func (r *resumer) Close() error {
	if r.body == nil {
		return nil
	}
	err := r.body.Close()
	r.watch.end()
	r.body = nil
	return err
}

// Blob streams a blob. Its reader returns io.EOF only when as many bytes as the descriptor says have come and have the
// descriptor's digest; until then nothing of it is verified. When the connection drops or stalls, the reader goes on
// where it was, see Retry. It ends with ctx.
func (c *Client) Blob(ctx context.Context, ref Reference, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := checkDigest(desc.Digest); err != nil {
		return nil, err
	}
	places, err := c.places(ctx, ref)
	if err != nil {
		return nil, err
	}
	r := &resumer{
		size: desc.Size, attempts: c.retry.Attempts,
		wait:  func(ref Reference, failures int, err error) error { return c.wait(ctx, ref.String(), failures, err) },
		final: func(err error) bool { return final(ctx, err) },
	}
	for _, place := range places {
		r.sources = append(r.sources, source{place, func(offset int64, ranges bool) (io.ReadCloser, *watch, error) {
			return c.openAt(ctx, place, desc, offset, ranges)
		}})
	}
	return &verified{
		rc: r, want: desc.Digest, size: desc.Size, hash: desc.Digest.Algorithm().Hash(),
		explain: func(err error) error { return Explain(r.sources[0].ref, err) },
	}, nil
}

// openAt makes one attempt to get a blob from an offset on. The caller closes the body, then ends the watch.
func (c *Client) openAt(ctx context.Context, ref Reference, desc ocispec.Descriptor, offset int64, ranges bool) (_ io.ReadCloser, _ *watch, err error) {
	ctx, w := newWatch(ctx, c.retry.Stall)
	w.start()
	defer func() {
		w.pause()
		if err != nil {
			err = w.explain(err)
			w.end()
		}
	}()
	body, err := c.fetch(ctx, ref, desc, desc.Size)
	if err != nil {
		return nil, nil, err
	}
	if offset > 0 && ranges {
		seeker, ok := body.(io.Seeker)
		if !ok {
			return nil, nil, errors.Join(errors.New("the registry client cannot seek"), body.Close())
		}
		_, err = seeker.Seek(offset, io.SeekStart)
	} else if offset > 0 {
		if _, err = io.CopyN(io.Discard, body, offset); errors.Is(err, io.EOF) {
			err = fmt.Errorf("blob %s ends before byte %d: %w", desc.Digest, offset, ErrDigest)
		}
	}
	if err != nil {
		_ = body.Close() // it has failed already
		return nil, nil, err
	}
	return body, w, nil
}
