// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compressions of a layer.
const (
	Gzip = "gzip"
	Zstd = "zstd"
	None = "none"
)

// Options describe an image to make.
type Options struct {
	// Rootfs is a folder, or a file that is an uncompressed tar.
	Rootfs string
	// Arch is the GOARCH that the image is for.
	Arch string
	// Config says what a container of the image runs.
	Config ocispec.ImageConfig
	// Compression of the layer; empty means Gzip.
	Compression string
	// Output is the folder of the OCI image layout; it does not exist or is empty.
	Output string
}

// FromRootfs makes an image with one layer and returns its manifest's descriptor. The same input makes the same image:
// there are no times in it; of a folder's files all belong to root and have the time 0. A tar becomes the layer as it is.
// Device nodes are an error, sockets are left out, extended attributes of a folder's files are dropped.
// After an error nothing is left of the layout.
func FromRootfs(ctx context.Context, o Options) (_ ocispec.Descriptor, err error) {
	if o.Arch == "" {
		return ocispec.Descriptor{}, errors.New("create image: no architecture")
	}
	if err := checkNewFolder(o.Output); err != nil {
		return ocispec.Descriptor{}, err
	}
	out, err := stageLayout(filepath.Dir(filepath.Clean(o.Output)))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { err = errors.Join(err, out.discard()) }()
	layer, diffID, err := writeLayer(ctx, out, o)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("create image: %w", err)
	}
	config, err := out.writeJSON(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{Architecture: o.Arch, OS: "linux"},
		Config:   o.Config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := out.writeJSON(ocispec.MediaTypeImageManifest, &ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{layer},
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := out.finish(desc, ""); err != nil {
		return ocispec.Descriptor{}, err
	}
	return desc, out.publish(o.Output)
}

// writeLayer writes the root file system as a layer and returns its descriptor and diff_id.
func writeLayer(ctx context.Context, out *layout, o Options) (_ ocispec.Descriptor, _ digest.Digest, err error) {
	pr, pw := io.Pipe()
	plain := digest.SHA256.Digester()
	done := make(chan struct{})
	mediaType, compressor, err := compress(o.Compression, pw)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	go func() {
		defer close(done)
		err := writeRootfs(ctx, io.MultiWriter(compressor, plain.Hash()), o.Rootfs)
		if e := compressor.Close(); err == nil {
			err = e
		}
		pw.CloseWithError(err)
	}()
	desc, err := out.write(mediaType, pr)
	pr.CloseWithError(err) // lets the writer end where write has failed
	<-done
	return desc, plain.Digest(), err
}

func compress(name string, w io.Writer) (mediaType string, _ io.WriteCloser, _ error) {
	switch name {
	case "", Gzip:
		zw, err := gzip.NewWriterLevel(w, gzip.BestCompression)
		return ocispec.MediaTypeImageLayerGzip, zw, err
	case Zstd:
		zw, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
		return ocispec.MediaTypeImageLayerZstd, zw, err
	case None:
		return ocispec.MediaTypeImageLayer, nopCloser{w}, nil
	default:
		return "", nil, fmt.Errorf("compression %q is none of %s, %s, %s", name, Gzip, Zstd, None)
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// writeRootfs writes a folder as a tar, or copies a tar.
func writeRootfs(ctx context.Context, w io.Writer, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("open root file system: %w", err)
	}
	if info.IsDir() {
		return writeTar(ctx, w, path)
	}
	f, err := os.Open(path) // the user's file
	if err != nil {
		return fmt.Errorf("open root file system: %w", err)
	}
	defer f.Close() // opened for reading
	return copyTar(ctx, w, bufio.NewReaderSize(f, 1<<20))
}
