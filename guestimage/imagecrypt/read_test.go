// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/unpack"
)

// readAll opens an image and returns the digest of each layer's tar.
func readAll(t *testing.T, l Location, a Access, arch string, ring *KeyRing) ([]digest.Digest, error) {
	t.Helper()
	img, err := OpenImage(t.Context(), l, a, arch)
	if err != nil {
		return nil, err
	}
	defer func() { check(t, img.Close()) }()
	out := make([]digest.Digest, img.Layers())
	for n := range out {
		err := img.ReadLayer(t.Context(), n, ring, func(tar io.Reader) (err error) {
			out[n], err = digest.FromReader(tar)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func oci(dir string) Location { return Location{Transport: OCI, Path: dir} }

// What is read is the tar that the config names, from layouts and a registry, of each compression, plain or encrypted.
func TestReadImage(t *testing.T) {
	packet := parties(t)["packet"]
	reg := startRegistry(t)
	for _, compression := range []string{Gzip, Zstd, None} {
		index := makeIndex(t, compression)
		enc := filepath.Join(t.TempDir(), "enc")
		_, err := Encrypt(t.Context(), between(index, enc), []Recipient{packet.recipient})
		check(t, err)
		ref := reg.host + "/read/" + compression + ":1"
		top, err := Push(t.Context(), enc, ref, Access{CA: reg.ca, Auth: reg.auth})
		check(t, err)
		img, err := OpenImage(t.Context(), oci(index), Access{}, "s390x")
		check(t, err)
		want := img.diffIDs
		check(t, img.Close())
		for name, l := range map[string]Location{
			"plain": oci(index), "encrypted": oci(enc), "registry": {Transport: Docker, Path: ref}, "digest": {Transport: Docker, Path: reg.host + "/read/" + compression + "@" + top.String()},
		} {
			got, err := readAll(t, l, Access{CA: reg.ca, Auth: reg.auth}, "s390x", packet.ring(t))
			if err != nil || len(got) != 1 || got[0] != want[0] {
				t.Errorf("%s %s: %v, %v, want %v", compression, name, got, err, want)
			}
		}
	}
	many, err := readAll(t, oci(manyLayers(t, 5)), Access{}, "s390x", nil)
	if err != nil || len(many) != 5 {
		t.Errorf("layers %v, %v", many, err)
	}
}

func TestImageDigests(t *testing.T) {
	dir := makeIndex(t, Gzip)
	seen := make(map[digest.Digest]bool)
	for _, arch := range []string{"s390x", "amd64"} {
		img, err := OpenImage(t.Context(), oci(dir), Access{}, arch)
		check(t, err)
		seen[img.Digest], seen[img.Manifest] = true, true
		check(t, img.Close())
	}
	if len(seen) != 3 {
		t.Errorf("digests %v, want one of the index and two of manifests", seen)
	}
	plain, desc := create(t, Options{Rootfs: rootfs(t)})
	img, err := OpenImage(t.Context(), oci(plain), Access{}, "s390x")
	check(t, err)
	defer func() { check(t, img.Close()) }()
	if img.Digest != desc.Digest || img.Manifest != desc.Digest {
		t.Errorf("digests %s and %s, want %s", img.Digest, img.Manifest, desc.Digest)
	}
}

func TestReadImageRefuses(t *testing.T) {
	all := parties(t)
	plain, _ := create(t, Options{Rootfs: rootfs(t)})
	tmp := t.TempDir()
	enc := filepath.Join(tmp, "enc")
	_, err := Encrypt(t.Context(), between(plain, enc), []Recipient{all["packet"].recipient})
	check(t, err)
	wrong := new(KeyRing)
	writeFile(t, tmp, "wrong", []byte(strings.Repeat("w", KeySize)))
	check(t, wrong.AddPacketKey(keyURI, filepath.Join(tmp, "wrong")))
	right := all["packet"].ring(t)
	for name, tt := range map[string]struct {
		src, arch string
		ring      *KeyRing
		kind      error
		want      string
	}{
		"no key":           {enc, "s390x", new(KeyRing), ErrNoKey, keyURI},
		"wrong key":        {enc, "s390x", wrong, ErrWrongKey, keyURI},
		"HMAC":             {forged(t, enc, "hmac"), "s390x", right, decrypt.ErrUnauthentic, "HMAC"},
		"ciphertext":       {forged(t, enc, "blob"), "s390x", right, nil, "does not match its digest"},
		"blob":             {forged(t, plain, "blob"), "s390x", right, nil, "does not match its digest"},
		"diff_id":          {forged(t, plain, "diffid"), "s390x", right, nil, "does not have the diff_id"},
		"architecture":     {plain, "amd64", right, nil, `image is for "linux"/"s390x", not for linux/amd64`},
		"not in the index": {makeIndex(t, Gzip), "arm64", right, nil, "no image for linux/arm64"},
		"no layout":        {tmp, "s390x", right, nil, "no such file"},
	} {
		_, err := readAll(t, oci(tt.src), Access{}, tt.arch, tt.ring)
		if err == nil || !strings.Contains(err.Error(), tt.want) || tt.kind != nil && !errors.Is(err, tt.kind) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// What the reader of a layer says counts, unless the layer was changed on the way.
func TestReadLayerErrors(t *testing.T) {
	plain, _ := create(t, Options{Rootfs: rootfs(t)})
	broken := errors.New("broken")
	limit := fmt.Errorf("%w: test", unpack.ErrLimit)
	for _, tt := range []struct {
		name, src string
		use       error
		want      string
	}{
		{"broken", plain, broken, "broken"},
		{"broken and changed", forged(t, plain, "blob"), broken, "does not match its digest"},
		{"limit", forged(t, plain, "blob"), limit, "limit"},
	} {
		img, err := OpenImage(t.Context(), oci(tt.src), Access{}, "s390x")
		check(t, err)
		err = img.ReadLayer(t.Context(), 0, nil, func(io.Reader) error { return tt.use })
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		check(t, img.Close())
	}
	img, err := OpenImage(t.Context(), oci(plain), Access{}, "s390x")
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	err = img.ReadLayer(ctx, 0, nil, func(io.Reader) error { cancel(); return ctx.Err() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	check(t, img.Close())
}
