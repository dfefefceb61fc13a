// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cloister-cc/cloister/agent/config"
	"github.com/cloister-cc/cloister/image"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys/file"
)

// images is the configuration of images on a machine that is not ours; what they need lies in dir.
func (a arguments) images(ctx context.Context, c *config.Config, log *slog.Logger, dir string) (image.Config, error) {
	ca, err := x509.SystemCertPool()
	if err != nil {
		log.Warn("no certificates to check registries against", "error", err)
		ca = x509.NewCertPool()
	}
	if a.resources != "" {
		if _, err := os.Stat(a.resources); err != nil { // Load takes what is not there for empty
			return image.Config{}, err
		}
	}
	resources, err := file.Load(a.resources)
	if err != nil {
		return image.Config{}, err
	}
	s := imageSettings{resources: resources, tempDir: filepath.Join(dir, "signatures")}
	if s.ImageSettings, err = readSettings(a.cdhConfig, log); err == nil {
		err = addParameters(&s.ImageSettings, c)
	}
	if err != nil {
		return image.Config{}, err
	}
	if s.SecurityPolicy == "" && s.SecurityPolicyURI == "" && !c.SignatureVerification {
		log.Warn("no image policy is configured: every image that a registry offers is used")
		s.SecurityPolicy = layout.InsecureAcceptAnything
	}
	out := image.Config{
		Root: filepath.Join(dir, "img"), CA: ca, PlainLoopback: true, Keys: keyFunc(resources), Log: log,
		HTTPSProxy: c.HTTPSProxy, NoProxy: c.NoProxy,
	}
	return out, s.apply(ctx, &out)
}

// addParameters adds what the kernel command line says, as Kata has it, to the settings of a file.
func addParameters(s *layout.ImageSettings, c *config.Config) error {
	if c.ImagePolicyFile != "" {
		if s.SecurityPolicy != "" || s.SecurityPolicyURI != "" {
			return errors.New("image policy is given both by agent.image_policy_file and by the image settings")
		}
		s.SecurityPolicyURI = c.ImagePolicyFile
	}
	if c.ImageRegistryAuth != "" {
		if s.CredentialsURI != "" {
			return errors.New("registry credentials are given both by agent.image_registry_auth and by the image settings")
		}
		s.CredentialsURI = c.ImageRegistryAuth
	}
	return s.Validate()
}
