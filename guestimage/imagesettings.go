// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/settings"
	"github.com/cloister-cc/cloister/image/sign"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
)

// AcceptAnything is what ImageOptions.Policy says, in place of a file, to allow every image.
const AcceptAnything = "insecureAcceptAnything"

// ImageOptions say which images the guest will use and where they come from.
type ImageOptions struct {
	// Policy is a file, a policy.json, or AcceptAnything. Keys that it names by a path are files of the build host, relative
	// to its folder; those of kbs:/// are among Options.Secrets. Without a policy the guest refuses every image but those
	// of its root disk.
	Policy string
	// SigstoreConfig is a file that says where signatures are kept beside registries, see containers-registries.d(5).
	SigstoreConfig string
	// Registries is a file, a registries.conf; AllowInsecure lets it name registries whose certificates are not checked.
	Registries    string
	AllowInsecure bool
	// CDHConfig is a file, a cdh.toml, whose table [image] says more. It may not say again what the other options say.
	CDHConfig string
	// HTTPSProxy and NoProxy are as in layout.ImageProxy.
	HTTPSProxy, NoProxy string
	// PrivateKeys maps URIs to files of private keys, for layers that are encrypted with jwe, pkcs7 or pgp.
	PrivateKeys map[string]string
}

// imageSettings are what is said about images, checked.
type imageSettings struct {
	layout.ImageSettings
	policy *sign.Policy // nil if it is only known in the guest
	// ignored are settings of a cdh.toml that have no effect.
	ignored []string
}

// loadImageSettings reads what o says about images. Resources are those that the guest will have.
func loadImageSettings(o *ImageOptions, resources []resource) (*imageSettings, error) {
	s := &imageSettings{}
	if err := s.readTable(o); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		input, file string
		text        *string
		uri         string
	}{
		{"sigstore-config", o.SigstoreConfig, &s.SigstoreConfig, s.SigstoreConfigURI},
		{"registries-conf", o.Registries, &s.RegistryConfig, s.RegistryConfigURI},
	} {
		if f.file == "" {
			continue
		}
		if *f.text != "" || f.uri != "" {
			return nil, twice(f.input)
		}
		data, err := readInput(f.input, f.file, maxConfigSize)
		if err != nil {
			return nil, err
		}
		*f.text = string(data)
	}
	s.AllowInsecure = s.AllowInsecure || o.AllowInsecure
	if o.HTTPSProxy == "" && o.NoProxy != "" {
		return nil, badInput("no-proxy", "give --https-proxy, too", "there is no proxy to go without")
	}
	if o.HTTPSProxy != "" {
		if s.Proxy != (layout.ImageProxy{}) {
			return nil, twice("https-proxy")
		}
		s.Proxy = layout.ImageProxy{HTTPSProxy: o.HTTPSProxy, NoProxy: o.NoProxy}
		if err := s.Validate(); err != nil {
			return nil, settingError("https-proxy", err)
		}
	}
	for _, uri := range slices.Sorted(maps.Keys(o.PrivateKeys)) {
		if !slices.Contains(s.PrivateKeys, uri) {
			s.PrivateKeys = append(s.PrivateKeys, uri)
		}
	}
	if err := s.readPolicy(o); err != nil {
		return nil, err
	}
	return s, s.check(o, resources)
}

// twice is the error of a setting that is in the cdh.toml, too.
func twice(input string) error {
	return badInput(input, "say it in one place", "the cdh.toml of --cdh-config sets it, too")
}

func (s *imageSettings) readTable(o *ImageOptions) error {
	if o.CDHConfig == "" {
		return nil
	}
	data, err := readInput("cdh-config", o.CDHConfig, settings.MaxSize)
	if err != nil {
		return err
	}
	if s.ImageSettings, s.ignored, err = settings.Parse(data); err != nil {
		return badInput("cdh-config", "", "%s: %w", o.CDHConfig, err)
	}
	return nil
}

// readPolicy takes the policy with the keys that it names by paths.
func (s *imageSettings) readPolicy(o *ImageOptions) error {
	if o.Policy == "" {
		return nil
	}
	if s.SecurityPolicy != "" || s.SecurityPolicyURI != "" {
		return twice("image-policy")
	}
	if o.Policy == AcceptAnything {
		s.SecurityPolicy = layout.InsecureAcceptAnything
		return nil
	}
	data, err := readInput("image-policy", o.Policy, sign.MaxPolicySize)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return badInput("image-policy", "leave --image-policy out to have every image refused", "%s is empty", o.Policy)
	}
	names, err := sign.KeyNames(data)
	if err != nil {
		return badInput("image-policy", "", "%s: %w", o.Policy, err)
	}
	s.SecurityPolicy, s.PolicyKeys = string(data), make(map[string][]byte)
	for _, name := range names {
		if strings.HasPrefix(name, keys.URIPrefix) {
			continue
		}
		file := strings.TrimPrefix(name, "file://")
		if !filepath.IsAbs(file) {
			file = filepath.Join(filepath.Dir(o.Policy), file)
		}
		if s.PolicyKeys[name], err = readInput("image-policy", file, sign.MaxPolicySize); err != nil {
			return err
		}
	}
	return nil
}

// check has the guest's own parsers look at what is known of the settings, so that no guest is built that stops at them
// when it boots.
func (s *imageSettings) check(o *ImageOptions, resources []resource) error {
	if err := s.Validate(); err != nil {
		return settingError("cdh-config", err)
	}
	for _, uri := range s.PrivateKeys {
		if _, ok := o.PrivateKeys[uri]; !ok {
			return badInput("cdh-config", "add --image-private-key "+uri+"=FILE", "private_keys names %s, which the guest will not have", uri)
		}
	}
	for i, c := range s.ExtraRootCertificates {
		if !x509.NewCertPool().AppendCertsFromPEM([]byte(c)) { // what the guest does
			return badInput("cdh-config", "", "extra_root_certificates: text %d holds no certificate in PEM", i+1)
		}
	}
	conf, known, err := either(s.RegistryConfig, s.RegistryConfigURI, resources)
	if err == nil && known {
		_, err = registry.ParseRegistries(conf, s.AllowInsecure)
	}
	if err != nil {
		return settingError("registries-conf", err)
	}
	auth, known, err := either("", s.CredentialsURI, resources)
	if err == nil && known && s.CredentialsURI != "" {
		err = checkAuth(auth)
	}
	if err != nil {
		return settingError("cdh-config", fmt.Errorf("authenticated_registry_credentials_uri: %w", err))
	}
	return s.checkPolicy(resources)
}

func (s *imageSettings) checkPolicy(resources []resource) error {
	policy, known, err := either(s.SecurityPolicy, s.SecurityPolicyURI, resources)
	if err != nil {
		return settingError("image-policy", err)
	}
	stores, storesKnown, err := either(s.SigstoreConfig, s.SigstoreConfigURI, resources)
	if err != nil {
		return settingError("sigstore-config", err)
	}
	if _, err := sign.New(sign.Config{Lookaside: stores}); err != nil {
		return settingError("sigstore-config", err)
	}
	names, err := sign.KeyNames(policy)
	if err != nil {
		return settingError("image-policy", err)
	}
	files := make(map[string][]byte, len(names))
	for _, name := range names {
		var here bool
		if files[name], here = s.PolicyKeys[name]; here {
			continue
		}
		if files[name], here, err = either("", name, resources); err != nil {
			return settingError("image-policy", err)
		}
		known = known && here
	}
	if !known || !storesKnown {
		return nil // the guest's root file system has a part of it
	}
	s.policy, err = sign.New(sign.Config{Policy: policy, Keys: files, Lookaside: stores, TempDir: os.TempDir()})
	if err != nil {
		return settingError("image-policy", err)
	}
	return nil
}

// either returns a text or what its URI names, if that is known before the guest runs.
func either(text, uri string, resources []resource) (data []byte, known bool, err error) {
	if uri == "" {
		return []byte(text), true, nil
	}
	if !strings.HasPrefix(uri, keys.URIPrefix) {
		if !strings.HasPrefix(uri, "file:///") && !strings.HasPrefix(uri, "/") {
			return nil, false, fmt.Errorf("%.200q is neither kbs:///repository/type/tag nor file:///path", uri)
		}
		return nil, false, nil
	}
	for _, r := range resources {
		if r.name.String() == uri {
			return r.data.Bytes(), true, nil
		}
	}
	return nil, false, &missingResource{uri}
}

// missingResource is the error of a URI that the guest has nothing for.
type missingResource struct{ uri string }

func (e *missingResource) Error() string { return e.uri + " is named, and the guest will not have it" }

// warnings say what who uses the guest should know about its images.
func (s *imageSettings) warnings() []string {
	var w []string
	switch {
	case s.SecurityPolicy == "" && s.SecurityPolicyURI == "":
		w = append(w, "no image policy: the guest refuses every image but those of its root disk")
	case len(s.policy.Unsigned()) > 0:
		w = append(w, "images need no signature where the image policy says insecureAcceptAnything: the registry chooses what they are ("+
			strings.Join(s.policy.Unsigned(), ", ")+")")
	}
	if s.AllowInsecure {
		w = append(w, "insecure registries are allowed: their certificates are not checked")
	}
	if len(s.ignored) > 0 {
		w = append(w, "settings of the cdh.toml without effect in this guest: "+strings.Join(s.ignored, ", "))
	}
	return w
}

// settingError names the input that a setting came from, and what to do.
func settingError(input string, err error) error {
	e := &InputError{Input: input, Err: err}
	if m, ok := errors.AsType[*missingResource](err); ok {
		e.What = "add --secret " + m.uri + "=FILE"
	}
	return e
}

// verifier asks the policy that the guest gets about images of its root disk, with a client of the registries that have
// their signatures. Without a policy they are used because they were named.
func (s *imageSettings) verifier(client *registry.Client) func(context.Context, registry.Reference, *imagecrypt.Image) error {
	return func(ctx context.Context, ref registry.Reference, img *imagecrypt.Image) error {
		if s.SecurityPolicy == "" && s.SecurityPolicyURI == "" {
			return nil
		}
		if s.policy == nil {
			return errors.New("a part of the image policy is in the guest's root file system, so it cannot be asked here: give it by --image-policy")
		}
		manifest := func(context.Context) (digest.Digest, error) { return img.Manifest, nil }
		return s.policy.CheckImage(ctx, ref.String(), img.Digest, manifest, sign.FromRegistry(client))
	}
}
