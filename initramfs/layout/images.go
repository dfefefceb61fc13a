// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package layout

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"
)

// ImagesDir is where the images of BootConfig.Images lie: in the root file system on the encrypted disk, not in the
// initramfs.
const ImagesDir = Dir + "/images"

// MaxImages bounds BootConfig.Images.
const MaxImages = 64

// maxReference bounds Image.Reference, in bytes.
const maxReference = 1024

// Image is a container image in the root file system.
type Image struct {
	// Reference is by what a container names the image: host[:port]/repository:tag or host[:port]/repository@digest.
	Reference string `json:"reference"`
	// Digest is what the reference stood for when the guest was built: the digest of an index or of a manifest.
	Digest string `json:"digest"`
	// Manifest is the digest of the image's manifest.
	Manifest string `json:"manifest"`
}

// Rootfs is the path of the image's root file system in that of the guest.
func (i Image) Rootfs() string {
	_, digits, _ := strings.Cut(i.Manifest, ":")
	return path.Join(ImagesDir, digits, "rootfs")
}

func validateImages(images []Image) error {
	if len(images) > MaxImages {
		return fmt.Errorf("boot config: %d images, at most %d are allowed", len(images), MaxImages)
	}
	seen := make(map[string]bool)
	for _, i := range images {
		if err := i.validate(); err != nil {
			return fmt.Errorf("boot config: image %.200q: %w", i.Reference, err)
		}
		if seen[i.Reference] {
			return fmt.Errorf("boot config: image %.200q is listed twice", i.Reference)
		}
		seen[i.Reference] = true
	}
	return nil
}

// validate leaves the grammar of references to those who use them.
func (i Image) validate() error {
	if n := len(i.Reference); n == 0 || n > maxReference || strings.ContainsFunc(i.Reference, notGraphic) {
		return fmt.Errorf("reference of %d bytes is not 1 to %d bytes of ASCII without spaces", n, maxReference)
	}
	for _, d := range []string{i.Digest, i.Manifest} {
		if !isDigest(d) {
			return fmt.Errorf("digest %.200q is not sha256 or sha512 in hexadecimal", d)
		}
	}
	if _, d, ok := strings.Cut(i.Reference, "@"); ok && d != i.Digest && d != i.Manifest {
		return errors.New("reference has another digest than the image")
	}
	return nil
}

func notGraphic(r rune) bool { return r <= ' ' || r > '~' }

// isDigest takes lower case alone: two spellings of a digest would be two paths.
func isDigest(d string) bool {
	algorithm, digits, _ := strings.Cut(d, ":")
	sum, err := hex.DecodeString(digits)
	if err != nil || digits != strings.ToLower(digits) {
		return false
	}
	return algorithm == "sha256" && len(sum) == 32 || algorithm == "sha512" && len(sum) == 64
}
