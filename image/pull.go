// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"syscall"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/store"
	"github.com/cloister-cc/cloister/image/unpack"
)

// ErrDiffID means that a layer is intact but not the one that the image's config lists.
var ErrDiffID = errors.New("layer does not match its diff_id in the image config")

// pull returns the verified layers of an image, lowest first.
func (s *Service) pull(ctx context.Context, ref registry.Reference) ([]store.Layer, error) {
	desc, err := s.registry.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := s.config.Verify(ctx, ref.String(), desc.Digest.String()); err != nil {
		return nil, fmt.Errorf("image %s (%s) is refused: %w", ref, desc.Digest, err)
	}
	img, err := s.image(ctx, ref, desc.Digest)
	if err != nil {
		return nil, err
	}
	s.config.Log.Info("pulling image", "reference", ref.String(), "digest", img.Digest.String(), "layers", len(img.Layers))
	layers := make([]store.Layer, len(img.Layers))
	group, ctx := errgroup.WithContext(ctx)
	for i, l := range img.Layers {
		group.Go(func() error {
			layer, err := s.flights.do(ctx, flightID(l), func(ctx context.Context) (store.Layer, error) {
				return s.layer(ctx, ref, l)
			})
			if err != nil {
				return fmt.Errorf("layer %d (%s) of %s: %w", i, l.Descriptor.Digest, ref, err)
			}
			layers[i] = layer
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	s.config.Log.Info("image is ready", "reference", ref.String(), "digest", img.Digest.String(),
		"manifest", img.Manifest.String(), "layers", len(layers))
	return layers, nil
}

// image returns the manifest of a digest, from memory if it is there.
func (s *Service) image(ctx context.Context, ref registry.Reference, d digest.Digest) (*registry.Image, error) {
	s.mu.Lock()
	img, ok := s.manifests[d]
	s.mu.Unlock()
	if ok {
		return img, nil
	}
	img, err := s.registry.Image(ctx, ref, d, s.config.Arch)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.manifests) >= maxManifests {
		clear(s.manifests)
	}
	s.manifests[d] = img
	return img, nil
}

// flightID tells layers apart that must not share a pull: the same blob with another diff_id, type or key.
func flightID(l registry.Layer) string {
	h := sha256.New()
	for _, part := range []string{
		l.Descriptor.Digest.String(), l.DiffID.String(), l.Descriptor.MediaType,
		l.Descriptor.Annotations[decrypt.KeysAnnotation], l.Descriptor.Annotations[decrypt.PublicAnnotation],
	} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// layer returns a verified layer, from the store if it is there. An encrypted one needs its key in either case.
// It runs in a goroutine of its own, where a panic over what a registry serves would end the whole program.
func (s *Service) layer(ctx context.Context, ref registry.Reference, l registry.Layer) (_ store.Layer, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.config.Log.Error("layer panicked", "digest", l.Descriptor.Digest.String(), "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = errors.New("internal error of the agent, see its log")
		}
	}()
	plain, encrypted := decrypt.PlainMediaType(l.Descriptor.MediaType)
	compression, err := unpack.FromMediaType(plain)
	if err != nil {
		return store.Layer{}, err
	}
	var key *decrypt.LayerKey
	if encrypted {
		if key, err = decrypt.Unwrap(ctx, l.Descriptor.Annotations, s.config.Keys); err != nil {
			return store.Layer{}, err
		}
		defer key.Wipe()
	}
	want := store.Layer{Blob: l.Descriptor.Digest, DiffID: l.DiffID, Encrypted: encrypted}
	if have, ok := s.store.Layer(want.Blob); ok {
		if have.DiffID != want.DiffID || have.Encrypted != want.Encrypted {
			return store.Layer{}, fmt.Errorf("another image has the same blob as another layer: %w", ErrDiffID)
		}
		return have, nil
	}
	if l.Descriptor.Size > s.config.Limits.Blob {
		return store.Layer{}, fmt.Errorf("layer has %d bytes, at most %d are allowed", l.Descriptor.Size, s.config.Limits.Blob)
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return store.Layer{}, context.Cause(ctx)
	}
	return s.fetch(ctx, ref, l, &stream{key: key, compression: compression, diffID: l.DiffID, limits: s.config.Limits.layer(l.Descriptor.Size)}, want)
}

// fetch pulls one layer into a staging folder, and into its place only when all of it is verified.
func (s *Service) fetch(ctx context.Context, ref registry.Reference, l registry.Layer, st *stream, want store.Layer) (_ store.Layer, err error) {
	staging, err := s.store.NewStaging()
	if err != nil {
		return store.Layer{}, err
	}
	defer func() { err = errors.Join(err, staging.Discard()) }()
	blob, err := s.registry.Blob(ctx, ref, l.Descriptor)
	if err != nil {
		return store.Layer{}, err
	}
	defer blob.Close() // read to its verified end, or failed
	stats, err := st.unpack(ctx, staging.Dir(), blob)
	if err != nil {
		return store.Layer{}, err
	}
	layer, err := staging.Commit(want)
	if err != nil {
		return store.Layer{}, err
	}
	s.config.Log.Debug("layer is ready", "digest", want.Blob.String(), "encrypted", want.Encrypted,
		"files", stats.Entries, "bytes", stats.Size, "devices_left_out", stats.Devices)
	return layer, nil
}

// stream is the way of one layer from the registry's blob to files.
type stream struct {
	key         *decrypt.LayerKey // nil: not encrypted
	compression unpack.Compression
	diffID      digest.Digest
	limits      unpack.Limits
}

// unpack writes the layer's files below dir. It succeeds only if blob ended with io.EOF, which says that its digest is
// right, the HMAC is right, and the diff_id, too.
func (st *stream) unpack(ctx context.Context, dir string, blob io.Reader) (unpack.Stats, error) {
	plain := blob
	if st.key != nil {
		var err error
		if plain, err = st.key.Reader(blob); err != nil {
			return unpack.Stats{}, err
		}
	}
	hash := st.diffID.Algorithm().Hash()
	stats, err := st.apply(ctx, dir, plain, hash)
	if err != nil {
		return unpack.Stats{}, rootCause(ctx, err, plain)
	}
	// The decompressor may have stopped before the end, and only the end says that digest and HMAC are right.
	rest, err := io.Copy(io.Discard, plain)
	if err != nil {
		return unpack.Stats{}, err
	}
	if rest != 0 {
		return unpack.Stats{}, fmt.Errorf("%d bytes after the end of the layer's compressed data", rest)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != st.diffID.Encoded() {
		return unpack.Stats{}, fmt.Errorf("%w: it has %s:%s, the config says %s", ErrDiffID, st.diffID.Algorithm(), got, st.diffID)
	}
	return stats, nil
}

func (st *stream) apply(ctx context.Context, dir string, plain io.Reader, hash io.Writer) (unpack.Stats, error) {
	tar, err := unpack.Decompress(st.compression, plain)
	if err != nil {
		return unpack.Stats{}, err
	}
	defer tar.Close() // what matters is the stream's end, which the caller looks at
	return unpack.Apply(ctx, dir, io.TeeReader(tar, hash), st.limits)
}

// rootCause reads a layer that does not unpack to its end, to tell one that was changed on the way from one that is
// wrong in itself. Nothing of it is used either way.
func rootCause(ctx context.Context, err error, plain io.Reader) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("the image store is full, give the guest more memory or scratch space: %w", err)
	case ctx.Err() != nil, errors.Is(err, unpack.ErrLimit), errors.As(err, &errno):
		return err
	}
	if _, late := io.Copy(io.Discard, plain); errors.Is(late, registry.ErrDigest) || errors.Is(late, decrypt.ErrUnauthentic) {
		return late
	}
	return err
}
