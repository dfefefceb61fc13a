// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/unpack"
)

// checkNewFile says whether an archive can be published under a name: nothing is there.
func checkNewFile(name string) error {
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("%s is there already", name)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create archive: %w", err)
	}
	return nil
}

// writeArchive writes a file that gets its name when it is whole.
func writeArchive(name string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".cloister-")
	if err != nil {
		return fmt.Errorf("create archive: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	err = write(w)
	if err == nil {
		err = w.Flush()
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	if err := checkNewFile(name); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return fmt.Errorf("publish archive: %w", err)
	}
	return nil
}

// addFile writes one file that depends on nothing but its name and content.
func addFile(w *tar.Writer, name string, size int64, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, r)
	return err
}

// writeOCIArchive writes the files of a layout as a tar, sorted.
func writeOCIArchive(ctx context.Context, w io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := os.Open(path) //nolint:gosec // G122: a private folder that we have just made
		if err != nil {
			return err
		}
		defer f.Close() // opened for reading
		info, err := f.Stat()
		if err != nil {
			return err
		}
		return addFile(tw, filepath.ToSlash(name), info.Size(), f)
	})
	return errors.Join(err, tw.Close())
}

// writeDockerArchive writes the only image of a layout as "docker save" does: its layers are not compressed.
func writeDockerArchive(ctx context.Context, w io.Writer, s source, name string) error {
	g, err := readGraph(ctx, s, nil)
	if err != nil {
		return err
	}
	img := g.images[0]
	config, diffIDs, err := img.diffIDs(ctx, s)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	entry := dockerImage{Config: img.manifest.Config.Digest.Encoded() + ".json"}
	if name != "" {
		entry.RepoTags = []string{name}
	}
	if err := addFile(tw, entry.Config, int64(len(config)), bytes.NewReader(config)); err != nil {
		return err
	}
	written := make(map[digest.Digest]bool)
	for i, l := range img.manifest.Layers {
		file := diffIDs[i].Encoded() + ".tar"
		entry.Layers = append(entry.Layers, file)
		if written[diffIDs[i]] {
			continue
		}
		written[diffIDs[i]] = true
		if err := addLayer(ctx, tw, s, l, file); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	list, err := json.Marshal([]dockerImage{entry})
	if err != nil {
		return err
	}
	return errors.Join(addFile(tw, dockerManifest, int64(len(list)), bytes.NewReader(list)), tw.Close())
}

// addLayer decompresses a layer twice: a tar wants the size first.
func addLayer(ctx context.Context, tw *tar.Writer, s source, l ocispec.Descriptor, name string) error {
	var size int64
	if err := withPlainLayer(ctx, s, l, func(r io.Reader) (err error) {
		size, err = io.Copy(io.Discard, r)
		return err
	}); err != nil {
		return err
	}
	return withPlainLayer(ctx, s, l, func(r io.Reader) error { return addFile(tw, name, size, r) })
}

func withPlainLayer(ctx context.Context, s source, l ocispec.Descriptor, use func(io.Reader) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	compression, err := unpack.FromMediaType(l.MediaType)
	if err != nil {
		return err
	}
	blob, err := s.blob(ctx, l)
	if err != nil {
		return err
	}
	defer blob.Close() // opened for reading
	r, err := unpack.Decompress(compression, blob)
	if err != nil {
		return err
	}
	defer r.Close() // opened for reading
	return use(io.LimitReader(r, unpack.DefaultSize))
}
