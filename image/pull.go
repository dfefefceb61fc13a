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
	"maps"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/store"
	"github.com/cloister-cc/cloister/image/unpack"
	"github.com/cloister-cc/cloister/internal/callers"
)

// ErrDiffID means that a layer is intact but not the one that the image's config lists.
var ErrDiffID = errors.New("layer does not match its diff_id in the image config")

// choose returns the image that a reference stands for now, and that may be used.
func (s *Service) choose(ctx context.Context, ref registry.Reference) (*registry.Image, error) {
	desc, err := s.registry.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := s.verify(ctx, ref, desc.Digest); err != nil {
		return nil, fmt.Errorf("image %s (%s): %w", ref, desc.Digest, err)
	}
	img, err := s.image(ctx, ref, desc.Digest)
	if err != nil {
		return nil, err
	}
	if err := s.config.Limits.check(img); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

// pull returns the verified layers of an image, lowest first. Pulls of the same image from the same place are one.
func (s *Service) pull(ctx context.Context, ref registry.Reference, img *registry.Image) ([]store.Layer, error) {
	id := ref.Host + "/" + ref.Repository + "@" + img.Manifest.String()
	layers, err := s.pulls.do(ctx, id, func(ctx context.Context) ([]store.Layer, error) {
		layers, err := s.layers(ctx, ref, img)
		if err != nil {
			s.tracker.failed.Add(1)
		}
		return layers, err
	})
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("the caller of %s did not wait for the end, the pull goes on for the next one: %w", ref, err)
	}
	return layers, err
}

// guard is deferred in goroutines of our own, where a panic over what a registry serves would end the whole program.
func (s *Service) guard(err *error, d digest.Digest) {
	if r := recover(); r != nil {
		s.config.Log.Error("pull panicked", "digest", d.String(), "panic", fmt.Sprint(r), "stack", callers.Names())
		*err = errors.New("internal error of the agent, see its log")
	}
}

// layers pulls the layers of an image that are not here.
func (s *Service) layers(ctx context.Context, ref registry.Reference, img *registry.Image) (_ []store.Layer, err error) {
	defer s.guard(&err, img.Manifest)
	hold := s.store.NewHold()
	defer hold.Release()
	if err := s.room(img, hold); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	progress := s.tracker.begin(ref, img, s.store.Layer, s.config.Log)
	defer progress.end()
	s.config.Log.Info("pulling image", "reference", ref.String(), "digest", img.Digest.String(), "layers", len(img.Layers))
	layers := make([]store.Layer, len(img.Layers))
	group, ctx := errgroup.WithContext(ctx)
	for i, l := range img.Layers {
		group.Go(func() error {
			layer, err := s.shared(ctx, ref, l)
			if err != nil {
				return fmt.Errorf("layer %d (%s) of %s: %w", i, l.Descriptor.Digest, ref, err)
			}
			if !hold.Add(layer) {
				return fmt.Errorf("layer %d (%s) of %s: %w", i, l.Descriptor.Digest, ref, store.ErrGone)
			}
			layers[i] = layer
			progress.done(i)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var size int64
	for _, l := range layers {
		if size += l.Size; size > s.config.Limits.ImageUnpacked {
			return nil, fmt.Errorf("image %s: layers take more than %d bytes: %w", ref, s.config.Limits.ImageUnpacked, unpack.ErrLimit)
		}
	}
	progress.ready = true
	s.config.Log.Info("image is ready", "reference", ref.String(), "digest", img.Digest.String(), "manifest", img.Manifest.String(),
		"layers", len(layers), "bytes", size, "fetched", progress.snapshot().Bytes, "ms", time.Since(progress.started).Milliseconds())
	return layers, nil
}

// pulled is a layer, and where it was to be had.
type pulled struct {
	layer store.Layer
	from  string
}

// shared returns a layer; all that want it at the same time share its pull. Where that fails at somebody else's registry
// or repository, which may not have it or be out of order, ours is asked.
func (s *Service) shared(ctx context.Context, ref registry.Reference, l registry.Layer) (store.Layer, error) {
	from := ref.Host + "/" + ref.Repository
	run := func(ctx context.Context) (pulled, error) {
		layer, err := s.layer(ctx, ref, l)
		return pulled{layer, from}, err
	}
	p, err := s.flights.do(ctx, flightID(l), run)
	if err != nil && ctx.Err() == nil && p.from != "" && p.from != from {
		p, err = s.flights.do(ctx, flightID(l), run)
	}
	return p.layer, err
}

// place is where an image was offered. That a registry or repository has one says nothing about others, for which a
// policy may ask for less.
type place struct {
	repository string // with the host
	digest     digest.Digest
}

// image returns the manifest of an image that may be used, from memory if it is there.
func (s *Service) image(ctx context.Context, ref registry.Reference, d digest.Digest) (*registry.Image, error) {
	at := place{ref.Host + "/" + ref.Repository, d}
	s.mu.Lock()
	img, ok := s.manifests[at]
	s.mu.Unlock()
	if ok {
		return img, nil
	}
	img, err := s.registry.Image(ctx, ref, d, s.config.Arch)
	if err != nil || strip(img) > maxManifest {
		return img, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.manifests) >= maxManifests {
		clear(s.manifests)
	}
	s.manifests[at] = img
	return img, nil
}

// strip drops what is not used of an image's layers, and returns about how many bytes of memory the rest takes.
func strip(img *registry.Image) int {
	size := 0
	for i := range img.Layers {
		d := &img.Layers[i].Descriptor
		maps.DeleteFunc(d.Annotations, func(name, _ string) bool { return !decrypt.Reads(name) })
		*d = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Annotations: d.Annotations}
		size += 512 + len(d.MediaType)
		for name, value := range d.Annotations {
			size += len(name) + len(value)
		}
	}
	return size
}

// flightID tells layers apart that must not share a pull: the same blob with another diff_id, type or key.
func flightID(l registry.Layer) string {
	h := sha256.New()
	for _, part := range []string{
		l.Descriptor.Digest.String(), l.DiffID.String(), l.Descriptor.MediaType, decrypt.Identity(l.Descriptor.Annotations),
	} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// layer returns a verified layer, from the store if it is there. An encrypted one needs its key in either case.
func (s *Service) layer(ctx context.Context, ref registry.Reference, l registry.Layer) (_ store.Layer, err error) {
	defer s.guard(&err, l.Descriptor.Digest)
	plain, encrypted := decrypt.PlainMediaType(l.Descriptor.MediaType)
	compression, err := unpack.FromMediaType(plain)
	if err != nil {
		return store.Layer{}, err
	}
	var key *decrypt.LayerKey
	if encrypted {
		if key, err = s.config.keys().Unwrap(ctx, l.Descriptor.Annotations); err != nil {
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
	slots := s.slots
	if l.Descriptor.Size <= smallLayer && compression != unpack.Zstd {
		slots = s.small
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return store.Layer{}, context.Cause(ctx)
	}
	st := &stream{
		key: key, compression: compression, diffID: l.DiffID, limits: s.config.Limits.layer(l.Descriptor.Size), store: s.store,
		progress: s.tracker.layer(l),
	}
	layer, err := s.fetch(ctx, ref, l, st, want)
	if errors.Is(err, registry.ErrDigest) && s.registry.Mirrored(ref) {
		// A mirror had something else. What the registry itself has is the image, or there is none.
		s.config.Log.Warn("layer has another digest, trying without mirrors", "reference", ref.String(), "error", err)
		layer, err = s.fetch(registry.WithoutMirrors(ctx), ref, l, st, want)
	}
	return layer, err
}

// fetch pulls one layer into a staging folder, and into its place only when all of it is verified.
func (s *Service) fetch(ctx context.Context, ref registry.Reference, l registry.Layer, st *stream, want store.Layer) (_ store.Layer, err error) {
	staging, err := s.store.NewStaging()
	if err != nil {
		return store.Layer{}, s.full(err)
	}
	defer func() { err = errors.Join(err, staging.Discard()) }()
	defer func() { err = s.full(err) }() // before the space is free again
	blob, err := s.registry.Blob(ctx, ref, l.Descriptor)
	if err != nil {
		return store.Layer{}, err
	}
	blob = st.progress.blob(blob)
	defer blob.Close() // read to its verified end, or failed
	stats, err := st.unpack(ctx, staging.Dir(), blob)
	if err != nil {
		return store.Layer{}, err
	}
	want.Size, want.Opaque = stats.Disk, stats.Opaque
	layer, err := staging.Commit(want)
	if err != nil {
		return store.Layer{}, err
	}
	s.config.Log.Debug("layer is ready", "digest", want.Blob.String(), "encrypted", want.Encrypted,
		"files", stats.Entries, "bytes", stats.Size, "devices_left_out", stats.Devices)
	return layer, nil
}

// full explains an error that says that there is no space, and leaves others alone.
func (s *Service) full(err error) error {
	if _, clear := errors.AsType[*store.SpaceError](err); clear || !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return s.store.Full(err)
}

// stream is the way of one layer from the registry's blob to files.
type stream struct {
	key         *decrypt.LayerKey // nil: not encrypted
	compression unpack.Compression
	diffID      digest.Digest
	limits      unpack.Limits
	store       *store.Store
	progress    *layerProgress
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
	return unpack.Apply(ctx, dir, io.TeeReader(st.progress.tar(&roomReader{r: tar, store: st.store}), hash), st.limits)
}

// rootCause reads a layer that does not unpack to its end, to tell one that was changed on the way from one that is
// wrong in itself. Nothing of it is used either way.
func rootCause(ctx context.Context, err error, plain io.Reader) error {
	var errno syscall.Errno
	switch {
	case ctx.Err() != nil, errors.Is(err, syscall.ENOSPC), errors.Is(err, unpack.ErrLimit), errors.As(err, &errno):
		return err
	}
	if _, late := io.Copy(io.Discard, plain); errors.Is(late, registry.ErrDigest) || errors.Is(late, decrypt.ErrUnauthentic) {
		return late
	}
	return err
}
