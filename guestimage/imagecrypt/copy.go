// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cloister-cc/cloister/image/decrypt"
)

// defaultWorkers is how many layers are read at a time.
const defaultWorkers = 4

// CopyOptions say which image is copied, and where to.
type CopyOptions struct {
	// Source and Destination are where the image is and shall be. A folder or file of the destination is not there yet,
	// or the folder is empty; it appears when all of it is written.
	Source, Destination Location
	// SourceAccess and DestinationAccess say how registries are reached.
	SourceAccess, DestinationAccess Access
	// Platforms (os/architecture[/variant]) choose images of an index; empty means all. One platform makes an image, more
	// make an index.
	Platforms []string
	// Layers are the numbers of the layers that Encrypt encrypts, from 0, the lowest; negative ones count from the top
	// one, -1. Empty means all.
	Layers []int
	// Workers is how many layers are worked on at a time, 0 means 4.
	Workers int
	// Progress, if not nil, is told how many bytes of the layers have been read, and how many there are. It is called
	// from several goroutines.
	Progress func(done, total int64)
}

// Result is what a copy came to.
type Result struct {
	// Digest is that of the new manifest or index.
	Digest digest.Digest `json:"digest"`
	// Images is the number of manifests.
	Images int `json:"images"`
	// Changed is the number of layers that were encrypted or decrypted, Unchanged that of those copied as they are. A layer
	// of several images counts for each.
	Changed   int `json:"changed"`
	Unchanged int `json:"unchanged"`
	// Skipped is the number of entries of an index that are no images, such as statements of origin. They are left out:
	// what they say is about other bytes.
	Skipped int `json:"skipped"`
}

// copier copies one image.
type copier struct {
	o CopyOptions
	// wanted says whether layer i of n is changed, change changes it.
	wanted func(i, n int, l ocispec.Descriptor) bool
	change func(ctx context.Context, c *copier, l ocispec.Descriptor, diffID digest.Digest) (ocispec.Descriptor, error)
	// nothing is the error of an image without a layer that is wanted.
	nothing error

	src         source
	out         *layout
	done, total atomic.Int64
}

// run copies by way of a layout in a private folder beside the destination.
func (c *copier) run(ctx context.Context) (_ *Result, err error) {
	push, err := c.checkDestination()
	if err != nil {
		return nil, err
	}
	if push != nil {
		defer func() { err = errors.Join(err, push.Close()) }()
	}
	if c.src, err = openSource(c.o.Source, c.o.SourceAccess); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.src.Close()) }()
	g, err := readGraph(ctx, c.src, c.o.Platforms)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", c.o.Source, err)
	}
	if c.o.Destination.Transport == DockerArchive && len(g.images) > 1 {
		return nil, fmt.Errorf("%s holds %d images, a docker-archive one: choose it by its platform", c.o.Source, len(g.images))
	}
	if c.out, err = stageLayout(stagingFolder(c.o.Destination)); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.out.discard()) }()
	result, root, err := c.copyGraph(ctx, g)
	if err != nil {
		return nil, err
	}
	if err := c.out.finish(root, c.o.Destination.Name); err != nil {
		return nil, err
	}
	return result, c.publish(ctx, push)
}

// checkDestination finds before any work what publish would fail at.
func (c *copier) checkDestination() (*registrySource, error) {
	d := c.o.Destination
	switch d.Transport {
	case Docker:
		return openPush(d.Path, c.o.DestinationAccess)
	case OCI:
		return nil, checkNewFolder(d.Path)
	case OCIArchive, DockerArchive:
		return nil, checkNewFile(d.Path)
	default:
		return nil, fmt.Errorf("transport %.40q is not known", d.Transport)
	}
}

// stagingFolder is on the destination's file system, so that renaming works.
func stagingFolder(d Location) string {
	if d.Transport == Docker {
		return os.TempDir()
	}
	return filepath.Dir(filepath.Clean(d.Path))
}

func (c *copier) publish(ctx context.Context, push *registrySource) error {
	d := c.o.Destination
	staged := &blobTree{tree: folder(c.out.dir), location: Location{Transport: OCI, Path: c.out.dir}}
	switch d.Transport {
	case Docker:
		_, err := push.push(ctx, staged)
		return err
	case OCIArchive:
		return writeArchive(d.Path, func(w io.Writer) error { return writeOCIArchive(ctx, w, c.out.dir) })
	case DockerArchive:
		return writeArchive(d.Path, func(w io.Writer) error { return writeDockerArchive(ctx, w, staged, d.Name) })
	default:
		return c.out.publish(d.Path)
	}
}

// layerJob is the copy of one layer, which several images may have.
type layerJob struct {
	layer  ocispec.Descriptor
	diffID digest.Digest
	change bool
	result ocispec.Descriptor
}

// copyGraph copies all layers at a time, then writes what names them.
func (c *copier) copyGraph(ctx context.Context, g *graph) (*Result, ocispec.Descriptor, error) {
	result := &Result{Images: len(g.images), Skipped: len(g.skipped)}
	jobs := make(map[string]*layerJob)
	perImage := make([][]*layerJob, len(g.images))
	for i, img := range g.images {
		if err := c.plan(ctx, img, jobs, &perImage[i], result); err != nil {
			return nil, ocispec.Descriptor{}, fmt.Errorf("image %s: %w", img.desc.Digest, err)
		}
	}
	if result.Changed == 0 {
		return nil, ocispec.Descriptor{}, c.nothing
	}
	if err := c.runJobs(ctx, jobs); err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	var descs []ocispec.Descriptor
	for i, img := range g.images {
		desc, err := c.writeManifest(img, perImage[i])
		if err != nil {
			return nil, ocispec.Descriptor{}, err
		}
		descs = append(descs, desc)
	}
	root := descs[0]
	if g.index != nil && len(c.o.Platforms) != 1 {
		index := *g.index
		index.MediaType, index.Manifests = ocispec.MediaTypeImageIndex, descs
		var err error
		if root, err = c.out.writeJSON(ocispec.MediaTypeImageIndex, index); err != nil {
			return nil, ocispec.Descriptor{}, err
		}
	}
	result.Digest = root.Digest
	return result, root, nil
}

// plan copies an image's config and notes what is to be done with its layers.
func (c *copier) plan(ctx context.Context, img graphImage, jobs map[string]*layerJob, list *[]*layerJob, result *Result) error {
	config, diffIDs, err := img.diffIDs(ctx, c.src)
	if err != nil {
		return err
	}
	copied, err := c.out.write(ocispec.MediaTypeImageConfig, bytes.NewReader(config))
	if err != nil {
		return err
	}
	if copied.Digest != img.manifest.Config.Digest {
		return fmt.Errorf("config %s does not have a sha256 digest", img.manifest.Config.Digest)
	}
	n := len(img.manifest.Layers)
	for _, k := range c.o.Layers {
		if k >= n || k < -n {
			return fmt.Errorf("there is no layer %d among %d", k, n)
		}
	}
	for i, l := range img.manifest.Layers {
		if err := checkBlob(l); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		job := &layerJob{layer: l, diffID: diffIDs[i], change: c.wanted(i, n, l)}
		if job.change {
			result.Changed++
		} else {
			result.Unchanged++
		}
		key := fmt.Sprint(job.change, l.Digest, l.Size, l.MediaType, job.diffID, encAnnotations(l.Annotations))
		if jobs[key] == nil {
			jobs[key] = job
			c.total.Add(l.Size)
		}
		*list = append(*list, jobs[key])
	}
	return nil
}

// encAnnotations returns the annotations that belong to encryption. Printing a map sorts it.
func encAnnotations(all map[string]string) map[string]string {
	out := make(map[string]string)
	for name, value := range all {
		if strings.HasPrefix(name, encPrefix) {
			out[name] = value
		}
	}
	return out
}

// encPrefix starts every annotation of ocicrypt.
const encPrefix = "org.opencontainers.image.enc."

func (c *copier) runJobs(ctx context.Context, jobs map[string]*layerJob) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, c.o.Workers))
	if c.o.Workers == 0 {
		group.SetLimit(defaultWorkers)
	}
	for _, job := range jobs {
		group.Go(func() (err error) {
			if job.change {
				job.result, err = c.change(ctx, c, job.layer, job.diffID)
			} else {
				job.result, err = c.copyLayer(ctx, job.layer)
			}
			if err != nil {
				return fmt.Errorf("layer %s: %w", job.layer.Digest, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (c *copier) copyLayer(ctx context.Context, l ocispec.Descriptor) (ocispec.Descriptor, error) {
	mediaType, err := ociLayerType(l.MediaType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	r, err := c.open(ctx, l)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer r.Close() // opened for reading
	desc, err := c.out.write(mediaType, r)
	desc.Annotations = encAnnotations(l.Annotations)
	return desc, err
}

// writeManifest writes the manifest of an image whose layers are copied.
func (c *copier) writeManifest(img graphImage, jobs []*layerJob) (ocispec.Descriptor, error) {
	m := *img.manifest
	m.MediaType, m.Config.MediaType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig // Docker's has no encrypted layers
	m.Layers = make([]ocispec.Descriptor, len(jobs))
	for i, job := range jobs {
		desc := job.result
		desc.Annotations = maps.Clone(img.manifest.Layers[i].Annotations)
		maps.DeleteFunc(desc.Annotations, func(name, _ string) bool { return strings.HasPrefix(name, encPrefix) })
		if desc.Annotations == nil {
			desc.Annotations = make(map[string]string)
		}
		maps.Copy(desc.Annotations, job.result.Annotations)
		m.Layers[i] = desc
	}
	desc, err := c.out.writeJSON(ocispec.MediaTypeImageManifest, m)
	desc.Platform = img.desc.Platform
	desc.Annotations = maps.Clone(img.desc.Annotations)
	return desc, err
}

// open opens a layer of the source. Its reader ends well only if size and digest are right.
func (c *copier) open(ctx context.Context, l ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := c.src.blob(ctx, l)
	if err != nil {
		return nil, err
	}
	return &layerReader{Reader: verify(r, l), Closer: r, ctx: ctx.Err, c: c}, nil
}

// layerReader ends with the context and counts.
type layerReader struct {
	io.Reader
	io.Closer

	ctx func() error
	c   *copier
}

func (r *layerReader) Read(p []byte) (int, error) {
	if err := r.ctx(); err != nil {
		return 0, err
	}
	n, err := r.Reader.Read(p)
	if done := r.c.done.Add(int64(n)); r.c.o.Progress != nil {
		r.c.o.Progress(done, r.c.total.Load())
	}
	return n, err
}

// encrypted says whether a layer is.
func encrypted(l ocispec.Descriptor) bool {
	_, yes := decrypt.PlainMediaType(l.MediaType)
	return yes
}
