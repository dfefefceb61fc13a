// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package layout

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
)

// InsecureAcceptAnything is the policy.json that allows every image, whoever has made it. It is for tests and
// demonstrations: the registry and the host then choose what runs.
const InsecureAcceptAnything = `{"default":[{"type":"insecureAcceptAnything"}]}`

// MaxPrivateKeys bounds ImageSettings.PrivateKeys.
const MaxPrivateKeys = 16

// ImageSettings say which images the guest uses and how it gets them. The zero value allows none. Fields of the table [image] of
// Confidential Containers' cdh.toml have their names there; of each pair of a text and its URI one may be set at most. A
// URI is kbs:///repository/type/tag, or file:///path of the root file system.
type ImageSettings struct {
	// SecurityPolicy is a policy.json, see containers-policy.json(5). Without one every image is refused.
	SecurityPolicy    string `json:"image_security_policy,omitempty" toml:"image_security_policy"`
	SecurityPolicyURI string `json:"image_security_policy_uri,omitempty" toml:"image_security_policy_uri"`
	// PolicyKeys are keys that SecurityPolicy names by a path, by that name. Those that it names by a URI need not be here.
	PolicyKeys map[string][]byte `json:"policy_keys,omitempty" toml:"-"`
	// SigstoreConfig says where signatures are kept beside registries: YAML, see containers-registries.d(5).
	SigstoreConfig    string `json:"sigstore_config,omitempty" toml:"sigstore_config"`
	SigstoreConfigURI string `json:"sigstore_config_uri,omitempty" toml:"sigstore_config_uri"`
	// RegistryConfig is a registries.conf, see containers-registries.conf(5).
	RegistryConfig    string `json:"registry_config,omitempty" toml:"registry_config"`
	RegistryConfigURI string `json:"registry_configuration_uri,omitempty" toml:"registry_configuration_uri"`
	// CredentialsURI names registry credentials; not beside a file at RegistryAuthPath.
	CredentialsURI string `json:"authenticated_registry_credentials_uri,omitempty" toml:"authenticated_registry_credentials_uri"`
	// ExtraRootCertificates are PEM certificates, beside those at RegistryCAPath.
	ExtraRootCertificates []string `json:"extra_root_certificates,omitempty" toml:"extra_root_certificates"`
	// Proxy is how registries are reached.
	Proxy ImageProxy `json:"image_pull_proxy,omitzero" toml:"image_pull_proxy"`
	// Parallel is the number of layers that are fetched at the same time; 0 means 3.
	Parallel int `json:"max_concurrent_layer_downloads_per_image,omitempty" toml:"max_concurrent_layer_downloads_per_image"`
	// AllowInsecure lets RegistryConfig name registries whose certificates are not checked.
	AllowInsecure bool `json:"allow_insecure_registries,omitempty" toml:"allow_insecure_registries"`
	// PrivateKeys are URIs of the private keys for layers encrypted with jwe, pkcs7 or pgp.
	PrivateKeys []string `json:"private_keys,omitempty" toml:"private_keys"`
	// Limits bound what an image may cost.
	Limits ImageLimits `json:"limits,omitzero" toml:"limits"`
}

// ImageProxy is how registries are reached: by HTTPS, as they are themselves.
type ImageProxy struct {
	// HTTPSProxy is the URL of a proxy. It may hold a password.
	HTTPSProxy string `json:"https_proxy,omitempty" toml:"https_proxy"`
	// NoProxy lists, with commas, what is reached without it.
	NoProxy string `json:"no_proxy,omitempty" toml:"no_proxy"`
}

// ImageLimits are those of package image, which has their defaults; 0 means the default. Sizes are in bytes.
type ImageLimits struct {
	// Image and ImageUnpacked bound an image's layers together, in the registry and in the store.
	Image         int64 `json:"image,omitempty" toml:"image"`
	ImageUnpacked int64 `json:"image_unpacked,omitempty" toml:"image_unpacked"`
	// Layers is the number of layers.
	Layers int `json:"layers,omitempty" toml:"layers"`
	// Layer and LayerUnpacked bound one layer; Ratio how many times its size in the registry it has uncompressed.
	Layer         int64 `json:"layer,omitempty" toml:"layer"`
	LayerUnpacked int64 `json:"layer_unpacked,omitempty" toml:"layer_unpacked"`
	Ratio         int64 `json:"ratio,omitempty" toml:"ratio"`
	// Files is the number of files in a layer, Path the bytes of a name there, Depth the folders in each other.
	Files int `json:"files,omitempty" toml:"files"`
	Path  int `json:"path,omitempty" toml:"path"`
	Depth int `json:"depth,omitempty" toml:"depth"`
	// Reserve is what pulls leave free for containers, Budget what layers may take before unused ones are removed.
	Reserve int64 `json:"reserve,omitempty" toml:"reserve"`
	Budget  int64 `json:"budget,omitempty" toml:"budget"`
}

// Validate reports the first thing that is wrong with what can be judged without other packages.
func (i *ImageSettings) Validate() error {
	for _, pair := range []struct{ name, text, uriName, uri string }{
		{"image_security_policy", i.SecurityPolicy, "image_security_policy_uri", i.SecurityPolicyURI},
		{"sigstore_config", i.SigstoreConfig, "sigstore_config_uri", i.SigstoreConfigURI},
		{"registry_config", i.RegistryConfig, "registry_configuration_uri", i.RegistryConfigURI},
		{"", "", "authenticated_registry_credentials_uri", i.CredentialsURI},
	} {
		if pair.text != "" && pair.uri != "" {
			return fmt.Errorf("image settings: both %s and %s are set", pair.name, pair.uriName)
		}
		if err := checkURI(pair.uri); err != nil {
			return fmt.Errorf("image settings: %s: %w", pair.uriName, err)
		}
	}
	if len(i.PrivateKeys) > MaxPrivateKeys {
		return fmt.Errorf("image settings: %d private keys, at most %d are allowed", len(i.PrivateKeys), MaxPrivateKeys)
	}
	if i.Parallel < 0 {
		return fmt.Errorf("image settings: max_concurrent_layer_downloads_per_image is %d", i.Parallel)
	}
	if p := i.Proxy.HTTPSProxy; p != "" {
		u, err := url.Parse(p) // whose errors, and the text, may hold a password
		if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
			return errors.New("image settings: https_proxy is not the URL of a proxy: http, https, socks5 or socks5h")
		}
	}
	return i.Limits.validate()
}

// checkURI accepts no URI, and those that the guest can read.
func checkURI(uri string) error {
	if uri == "" || strings.HasPrefix(uri, "kbs:///") {
		return nil
	}
	if p, ok := strings.CutPrefix(uri, "file://"); ok && path.IsAbs(p) && path.Clean(p) == p {
		return nil
	}
	return fmt.Errorf("%.100q is neither kbs:///repository/type/tag nor file:///path", uri)
}

func (l *ImageLimits) validate() error {
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"image", l.Image},
		{"image_unpacked", l.ImageUnpacked},
		{"layers", int64(l.Layers)},
		{"layer", l.Layer},
		{"layer_unpacked", l.LayerUnpacked},
		{"ratio", l.Ratio},
		{"files", int64(l.Files)},
		{"path", int64(l.Path)},
		{"depth", int64(l.Depth)},
		{"reserve", l.Reserve},
		{"budget", l.Budget},
	} {
		if f.value < 0 {
			return fmt.Errorf("image settings: limit %s is %d", f.name, f.value)
		}
	}
	return nil
}
