// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package story

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/keys"
)

// Image is a container image to make: busybox, and Files (path to content).
type Image struct {
	Name  string
	Files map[string]string
	// KeyURI and KeyFile encrypt its layer; without KeyURI the layer is plain.
	KeyURI, KeyFile string
}

// PushImage makes an image, pushes it to the registry, and returns the reference by which the guest can pull it.
func (l *Lab) PushImage(ctx context.Context, r *Registry, i Image) (string, error) {
	dir := filepath.Join(l.Dir, "image-"+i.Name)
	rootfs, layout := filepath.Join(dir, "rootfs"), filepath.Join(dir, "layout")
	if err := BusyboxRootfs(rootfs, l.Bed.Busybox, i.Files); err != nil {
		return "", err
	}
	_, err := imagecrypt.FromRootfs(ctx, imagecrypt.Options{
		Rootfs: rootfs, Arch: l.Arch, Output: layout,
		Config: ocispec.ImageConfig{Cmd: []string{"/bin/sh"}},
	})
	if err != nil {
		return "", err
	}
	if i.KeyURI != "" {
		if layout, err = encrypt(ctx, layout, i); err != nil {
			return "", err
		}
	}
	ca, auth, err := r.credentials()
	if err != nil {
		return "", err
	}
	name := "/story/" + i.Name + ":1"
	if _, err := imagecrypt.Push(ctx, layout, r.Host(LoopbackHost)+name, imagecrypt.Access{CA: ca, Auth: auth}); err != nil {
		return "", err
	}
	return r.Host(GuestHost) + name, nil
}

func encrypt(ctx context.Context, layout string, i Image) (string, error) {
	data, err := os.ReadFile(i.KeyFile)
	if err != nil {
		return "", fmt.Errorf("read image key: %w", err)
	}
	key := keys.NewSecret(data)
	defer key.Wipe()
	out := layout + "-encrypted"
	if _, err := imagecrypt.Encrypt(ctx, imagecrypt.CopyOptions{
		Source:      imagecrypt.Location{Transport: imagecrypt.OCI, Path: layout},
		Destination: imagecrypt.Location{Transport: imagecrypt.OCI, Path: out},
	}, []imagecrypt.Recipient{{KeyURI: i.KeyURI, Key: key}}); err != nil {
		return "", err
	}
	return out, nil
}

func (r *Registry) credentials() (*x509.CertPool, []byte, error) {
	pem, err := os.ReadFile(r.PKI.CA)
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	auth, err := os.ReadFile(r.Auth)
	return pool, auth, err
}

// Blob returns the file in which the registry keeps a blob.
func (r *Registry) Blob(d digest.Digest) string {
	return filepath.Join(r.Root, "docker/registry/v2/blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
}
