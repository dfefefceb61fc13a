// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/guestimage/rootdisk"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/unpack"
	"github.com/cloister-cc/cloister/initramfs/layout"
)

// Image is a container image to put into the root disk.
type Image struct {
	// Reference is by what containers name it.
	Reference registry.Reference
	// From is where it is now; the zero value is the registry of its reference.
	From imagecrypt.Location
}

// ParseImage reads REFERENCE or REFERENCE=LOCATION, see registry.ParseReference and imagecrypt.ParseLocation. Its errors
// may have a method Hint.
func ParseImage(s string) (Image, error) {
	name, from, elsewhere := strings.Cut(s, "=")
	ref, err := registry.ParseReference(name)
	if err != nil {
		return Image{}, err
	}
	img := Image{Reference: ref}
	if elsewhere {
		if img.From, err = imagecrypt.ParseLocation(from); err != nil {
			return Image{}, err
		}
	}
	return img, nil
}

func (i Image) location() imagecrypt.Location {
	if i.From == (imagecrypt.Location{}) {
		return imagecrypt.Location{Transport: imagecrypt.Docker, Path: i.Reference.String()}
	}
	return i.From
}

// checkImages looks at everything that can be said about images without reading them.
func (o *Options) checkImages() error {
	if n := len(o.Images); n > layout.MaxImages {
		return badInput("image", "", "%d images, at most %d are allowed", n, layout.MaxImages)
	}
	seen := make(map[registry.Reference]bool)
	for _, i := range o.Images {
		if i.Reference.Repository == "" {
			return badInput("image", "", "reference %q names no image", i.Reference)
		}
		if seen[i.Reference] {
			return badInput("image", "", "%s is given twice", i.Reference)
		}
		seen[i.Reference] = true
	}
	return nil
}

// baked are the images of a root disk. close drops their contents.
type baked struct {
	list   []layout.Image
	trees  map[string]*rootdisk.Layered // by their path in the guest
	limits unpack.Limits                // of each layer
	dir    string                       // for scratch files
	ring   imagecrypt.KeyRing
}

// images reads the images; contents of their files go to scratch files in dir.
func (b *builder) images(ctx context.Context, dir string) (_ *baked, err error) {
	s := &baked{trees: make(map[string]*rootdisk.Layered), limits: b.layerLimits, dir: dir}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if len(b.o.Images) == 0 {
		return s, nil
	}
	defer s.ring.Wipe()
	if err := s.addKeys(&b.o); err != nil {
		return nil, err
	}
	for _, i := range b.o.Images {
		start := time.Now()
		size, err := s.add(ctx, b, i)
		if err != nil {
			return nil, imageError(i, err)
		}
		b.progress("image "+i.Reference.String(), size, start)
	}
	// Which order the flags had is no reason for another guest.
	slices.SortFunc(s.list, func(a, b layout.Image) int { return strings.Compare(a.Reference, b.Reference) })
	return s, nil
}

// addKeys reads the keys that the guest gets for its images.
func (s *baked) addKeys(o *Options) error {
	for _, uri := range slices.Sorted(maps.Keys(o.ImageKeys)) {
		if err := s.ring.AddPacketKey(uri, o.ImageKeys[uri]); err != nil {
			return &InputError{Input: "image-key", Err: err}
		}
	}
	for _, uri := range slices.Sorted(maps.Keys(o.Image.PrivateKeys)) {
		if err := s.ring.AddFile(o.Image.PrivateKeys[uri], nil); err != nil {
			return &InputError{Input: "image-private-key", Err: err}
		}
	}
	return nil
}

func (s *baked) close() {
	for _, t := range s.trees {
		_ = t.Close() // its file is gone in any case
	}
}

// imageError says what is wrong with an image, and what to do.
func imageError(i Image, err error) error {
	e := &InputError{Input: "image", Err: fmt.Errorf("%s: %w", i.Reference, err)}
	var hint interface{ Hint() string }
	switch {
	case errors.Is(err, imagecrypt.ErrNoKey):
		e.What = "give the key as --image-key kbs:///REPOSITORY/TYPE/TAG=FILE"
	case errors.Is(err, registry.ErrUntrusted):
		e.What = "give the certificate of the registry's CA as --registry-ca"
	case errors.Is(err, registry.ErrUnauthorized):
		e.What = "give credentials for " + i.Reference.Host + " as --registry-auth"
	case errors.As(err, &hint):
		e.What = hint.Hint()
	}
	return e
}

// add reads one image and returns the size of its files.
func (s *baked) add(ctx context.Context, b *builder, i Image) (_ int64, err error) {
	img, err := imagecrypt.OpenImage(ctx, i.location(), b.o.ImageAccess, b.o.Arch)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	if d := i.Reference.Digest; d != "" && d != img.Digest && d != img.Manifest {
		return 0, fmt.Errorf("%s holds %s, which is another image", i.location(), img.Digest)
	}
	if err := b.verify(ctx, i.Reference, img); err != nil {
		return 0, fmt.Errorf("%s is refused: %w", img.Digest, err)
	}
	entry := layout.Image{Reference: i.Reference.String(), Digest: img.Digest.String(), Manifest: img.Manifest.String()}
	tree := s.trees[entry.Rootfs()]
	if tree == nil {
		if tree, err = s.read(ctx, img); err != nil {
			return 0, err
		}
		s.trees[entry.Rootfs()] = tree
	}
	s.list = append(s.list, entry)
	return tree.Size(), nil
}

// read merges the layers of an image. All of them are verified when it returns.
func (s *baked) read(ctx context.Context, img *imagecrypt.Image) (_ *rootdisk.Layered, err error) {
	tree, err := rootdisk.NewLayered(s.dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tree.Close())
		}
	}()
	for n := range img.Layers() {
		err := img.ReadLayer(ctx, n, &s.ring, func(tar io.Reader) error {
			_, err := tree.Apply(ctx, tar, s.limits)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return tree, nil
}
