// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/image"
	"github.com/cloister-cc/cloister/image/settings"
	"github.com/cloister-cc/cloister/image/sign"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
)

// maxResource bounds what a URI of the image settings names, in bytes.
const maxResource = 1 << 20

// imageSettings turn settings into what the image service takes. The zero value refuses every image.
type imageSettings struct {
	layout.ImageSettings
	// resources has what kbs:/// names.
	resources keys.Provider
	// tempDir is made, for signatures that are being verified.
	tempDir string
}

// apply adds the settings to a configuration.
func (s *imageSettings) apply(ctx context.Context, c *image.Config) (err error) {
	if c.Policy, err = s.policy(ctx); err != nil {
		return err
	}
	if c.Registries, err = s.either(ctx, s.RegistryConfig, s.RegistryConfigURI); err != nil {
		return fmt.Errorf("registry configuration: %w", err)
	}
	c.AllowInsecure = s.AllowInsecure
	if s.CredentialsURI != "" {
		if len(c.Auth) != 0 {
			return errors.New("registry credentials are given both as a file and by a URI")
		}
		if c.Auth, err = s.get(ctx, s.CredentialsURI); err != nil {
			return fmt.Errorf("registry credentials: %w", err)
		}
	}
	for i, pem := range s.ExtraRootCertificates {
		if c.CA == nil {
			c.CA = x509.NewCertPool()
		}
		if !c.CA.AppendCertsFromPEM([]byte(pem)) {
			return fmt.Errorf("extra root certificate %d holds no certificate", i+1)
		}
	}
	if s.Proxy.HTTPSProxy != "" {
		c.HTTPSProxy, c.NoProxy = s.Proxy.HTTPSProxy, s.Proxy.NoProxy
	}
	c.PrivateKeys = s.PrivateKeys
	c.Limits = imageLimits(s.Limits)
	c.Limits.Parallel = s.Parallel
	return nil
}

// policy reads the policy with everything that it names.
func (s *imageSettings) policy(ctx context.Context) (*sign.Policy, error) {
	policy, err := s.either(ctx, s.SecurityPolicy, s.SecurityPolicyURI)
	if err != nil {
		return nil, fmt.Errorf("image policy: %w", err)
	}
	names, err := sign.KeyNames(policy)
	if err != nil {
		return nil, err
	}
	files := make(map[string][]byte, len(names))
	for _, name := range names {
		key, ok := s.PolicyKeys[name]
		if !ok {
			if key, err = s.get(ctx, name); err != nil {
				return nil, fmt.Errorf("image policy: key: %w", err)
			}
		}
		files[name] = key
	}
	stores, err := s.either(ctx, s.SigstoreConfig, s.SigstoreConfigURI)
	if err != nil {
		return nil, fmt.Errorf("sigstore configuration: %w", err)
	}
	if err := os.MkdirAll(s.tempDir, 0o700); err != nil {
		return nil, err
	}
	return sign.New(sign.Config{Policy: policy, Keys: files, Lookaside: stores, TempDir: s.tempDir})
}

// either returns a text, or what is there under its URI. Neither is nothing.
func (s *imageSettings) either(ctx context.Context, text, uri string) ([]byte, error) {
	if uri == "" {
		return []byte(text), nil
	}
	return s.get(ctx, uri)
}

// get returns what a URI names: a resource of the guest, or a file of its root file system, which may also be named by
// its absolute path. Nothing there is an error: a setting that is asked for must not be the default.
func (s *imageSettings) get(ctx context.Context, uri string) ([]byte, error) {
	if strings.HasPrefix(uri, keys.URIPrefix) {
		if s.resources == nil {
			return nil, fmt.Errorf("%.200s: %w", uri, keys.ErrNotFound)
		}
		secret, err := s.resources.Get(ctx, uri)
		if err != nil {
			return nil, err
		}
		return secret.Bytes(), nil
	}
	path := strings.TrimPrefix(uri, "file://")
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%.200q is neither kbs:///repository/type/tag nor file:///path", uri)
	}
	return readResource(path)
}

// readResource reads a file of the root file system, and refuses one without content.
func readResource(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would wait for its writer
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxResource+1))
	if err != nil {
		return nil, err
	}
	if len(data) == 0 || len(data) > maxResource {
		return nil, fmt.Errorf("%s is empty or larger than %d bytes", path, maxResource)
	}
	return data, nil
}

func imageLimits(l layout.ImageLimits) image.Limits {
	return image.Limits{
		Image: l.Image, ImageUnpacked: l.ImageUnpacked, Layers: l.Layers, Blob: l.Layer, Unpacked: l.LayerUnpacked,
		Ratio: l.Ratio, Files: l.Files, Path: l.Path, Depth: l.Depth, Reserve: l.Reserve, Budget: l.Budget,
	}
}

// readSettings reads a cdh.toml, if one is named.
func readSettings(file string, log *slog.Logger) (layout.ImageSettings, error) {
	if file == "" {
		return layout.ImageSettings{}, nil
	}
	data, err := readResource(file)
	if err != nil {
		return layout.ImageSettings{}, fmt.Errorf("image settings: %w", err)
	}
	s, ignored, err := settings.Parse(data)
	if err != nil {
		return layout.ImageSettings{}, fmt.Errorf("%s: %w", file, err)
	}
	if len(ignored) > 0 {
		log.Warn("settings without effect in this guest", "file", file, "settings", strings.Join(ignored, " "))
	}
	return s, nil
}
