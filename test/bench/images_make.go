// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
)

// layerSpec says what a layer holds: bytes of files, of which the part small (in percent) is of many small ones.
type layerSpec struct {
	bytes int64
	small int64
}

// Sizes of files in bytes: small ones have up to smallFile, a third of that on average, all others largeFile.
const (
	smallFile = 32 << 10
	largeFile = 16 << 20
)

// corpus is what files are cut out of. Its parts compress like text and like programs; they are so much larger than
// gzip's window that cutting adds nothing.
type corpus struct{ text, code []byte }

const corpusSize = 8 << 20

func newCorpus() *corpus {
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // G404: the same bytes each time
	words := make([]string, 4096)
	for i := range words {
		word := make([]byte, 2+rnd.IntN(9))
		for j := range word {
			word[j] = byte('a' + rnd.IntN(26))
		}
		words[i] = string(word)
	}
	zipf := rand.NewZipf(rnd, 1.5, 6, uint64(len(words)-1))
	c := &corpus{}
	for len(c.text) < corpusSize {
		c.text = append(c.text, words[zipf.Uint64()]...)
		c.text = append(c.text, [...]string{" ", " ", " ", " ", ", ", "(", ") ", ".", " = ", "\n\t"}[rnd.IntN(10)]...)
	}
	var ops [256][]byte
	for i := range ops {
		ops[i] = make([]byte, 2+rnd.IntN(5))
		for j := range ops[i] {
			ops[i][j] = byte(rnd.Uint32())
		}
	}
	zipf = rand.NewZipf(rnd, 1.8, 6, uint64(len(ops)-1))
	for len(c.code) < corpusSize {
		c.code = append(c.code, ops[zipf.Uint64()]...)
		if rnd.IntN(8) == 0 { // an operand
			c.code = append(c.code, byte(rnd.Uint32()), byte(rnd.Uint32N(16)), 0, 0)
		}
	}
	return c
}

// write writes size bytes of a file.
func (c *corpus) write(w io.Writer, rnd *rand.Rand, from []byte, size int64) error {
	for size > 0 {
		n := min(size, 512+rnd.Int64N(8<<10))
		start := rnd.Int64N(corpusSize - n)
		if _, err := w.Write(from[start : start+n]); err != nil {
			return err
		}
		size -= n
	}
	return nil
}

// tarball writes the files of a layer; seed makes it differ from others.
func (c *corpus) tarball(ctx context.Context, w io.Writer, spec layerSpec, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 3)) //nolint:gosec // G404: the same bytes each time
	tw := tar.NewWriter(w)
	small, left := spec.bytes*spec.small/100, spec.bytes
	for i := 0; left > 0; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}
		from := c.text
		if left > spec.bytes-small {
			size := rnd.Int64N(smallFile)
			h.Name, h.Size = fmt.Sprintf("usr/lib/layer%d/package%d/part%d/module%d.src", seed, i/200, i/20%10, i), size*size/smallFile
		} else {
			h.Name, h.Mode, h.Size = fmt.Sprintf("usr/lib/layer%d/bin/program%d", seed, i), 0o755, largeFile
			from = c.code
		}
		if i%20 == 0 && left > spec.bytes-small {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, Name: filepath.Dir(h.Name) + "/"}); err != nil {
				return err
			}
		}
		if h.Size = min(h.Size, left); h.Size == 0 {
			continue
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if err := c.write(tw, rnd, from, h.Size); err != nil {
			return err
		}
		left -= h.Size
	}
	return tw.Close()
}

// imageMaker makes images of layers that are all different, in OCI image layouts below dir.
type imageMaker struct {
	corpus *corpus
	dir    string
	seed   uint64
}

// compression is how the layers of an image are compressed.
type compression struct {
	mediaType string
	writer    func(w io.Writer) (io.WriteCloser, error)
}

func gzipped(level int) compression {
	return compression{ocispec.MediaTypeImageLayerGzip, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, level) }}
}

func zstandard() compression {
	return compression{ocispec.MediaTypeImageLayerZstd, func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}}
}

// plainImage is an image in a layout.
type plainImage struct {
	layout   string
	manifest ocispec.Manifest
	desc     ocispec.Descriptor
	unpacked int64 // bytes of files
}

// blob returns the file of a blob.
func blobFile(layout string, d digest.Digest) string {
	return filepath.Join(layout, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// make makes an image of new layers.
func (m *imageMaker) make(ctx context.Context, name string, c compression, specs ...layerSpec) (*plainImage, error) {
	img := &plainImage{layout: filepath.Join(m.dir, name)}
	if err := os.MkdirAll(filepath.Join(img.layout, ocispec.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return nil, err
	}
	layers, diffIDs := make([]ocispec.Descriptor, len(specs)), make([]digest.Digest, len(specs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, spec := range specs {
		m.seed++
		seed := m.seed
		img.unpacked += spec.bytes
		group.Go(func() (err error) {
			layers[i], diffIDs[i], err = m.layer(ctx, img.layout, c, spec, seed)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("make image %s: %w", name, err)
	}
	return img, img.finish(layers, diffIDs)
}

func (m *imageMaker) layer(ctx context.Context, layout string, c compression, spec layerSpec, seed uint64) (_ ocispec.Descriptor, diffID digest.Digest, err error) {
	f, err := os.CreateTemp(layout, "layer-")
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	blob, plain := digest.SHA256.Digester(), digest.SHA256.Digester()
	zw, err := c.writer(io.MultiWriter(f, blob.Hash()))
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	if err := m.corpus.tarball(ctx, io.MultiWriter(zw, plain.Hash()), spec, seed); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	if err := zw.Close(); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	info, err := f.Stat()
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	desc := ocispec.Descriptor{MediaType: c.mediaType, Digest: blob.Digest(), Size: info.Size()}
	return desc, plain.Digest(), os.Rename(f.Name(), blobFile(layout, desc.Digest))
}

// finish writes config and manifest.
func (i *plainImage) finish(layers []ocispec.Descriptor, diffIDs []digest.Digest) error {
	config, err := i.writeJSON(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{Cmd: []string{"/bin/sh"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	if err != nil {
		return err
	}
	i.manifest = ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers,
	}
	if i.desc, err = i.writeJSON(ocispec.MediaTypeImageManifest, i.manifest); err != nil {
		return err
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{i.desc},
	})
	if err != nil {
		return err
	}
	version := `{"imageLayoutVersion": "` + ocispec.ImageLayoutVersion + `"}`
	return errors.Join(os.WriteFile(filepath.Join(i.layout, ocispec.ImageIndexFile), index, 0o600),
		os.WriteFile(filepath.Join(i.layout, ocispec.ImageLayoutFile), []byte(version), 0o600))
}

func (i *plainImage) writeJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return desc, os.WriteFile(blobFile(i.layout, desc.Digest), data, 0o600)
}

// encrypt makes the encrypted image of a plain one.
func (i *plainImage) encrypt(ctx context.Context, recipients []imagecrypt.Recipient) (*plainImage, error) {
	out := &plainImage{layout: i.layout + "-encrypted", unpacked: i.unpacked}
	result, err := imagecrypt.Encrypt(ctx, imagecrypt.CopyOptions{
		Source:      imagecrypt.Location{Transport: imagecrypt.OCI, Path: i.layout},
		Destination: imagecrypt.Location{Transport: imagecrypt.OCI, Path: out.layout},
	}, recipients)
	if err != nil {
		return nil, err
	}
	out.desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: result.Digest}
	data, err := os.ReadFile(blobFile(out.layout, result.Digest))
	if err != nil {
		return nil, err
	}
	out.desc.Size = int64(len(data))
	if err := json.Unmarshal(data, &out.manifest); err != nil {
		return nil, err
	}
	for _, l := range out.manifest.Layers {
		if !strings.HasSuffix(l.MediaType, "+encrypted") {
			return nil, fmt.Errorf("layer %s is not encrypted", l.Digest)
		}
	}
	return out, nil
}

// size returns the bytes of the layers.
func (i *plainImage) size() (n int64) {
	for _, l := range i.manifest.Layers {
		n += l.Size
	}
	return n
}
