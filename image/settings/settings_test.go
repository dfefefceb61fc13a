// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package settings

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/initramfs/layout"
)

// full sets everything that Confidential Containers know, and what is ours.
const full = `
socket = "unix:///run/confidential-containers/cdh.sock"

[kbc]
name = "cc_kbc"
url = "http://kbs.example:8080"

[[credentials]]
path = "/run/confidential-containers/cdh/kms-credential/x"
resource_uri = "kbs:///default/credential/x"

[image]
work_dir = "/run/image-rs"
max_concurrent_layer_downloads_per_image = 5
image_security_policy_uri = "kbs:///default/security-policy/test"
sigstore_config_uri = "kbs:///default/sigstore-config/test"
registry_config = """
[[registry]]
location = "a.example"
"""
authenticated_registry_credentials_uri = "file:///etc/auth.json"
extra_root_certificates = ["""
-----BEGIN CERTIFICATE-----
AA==
-----END CERTIFICATE-----
"""]
private_keys = ["kbs:///default/private-key/one"]
allow_insecure_registries = true

[image.image_pull_proxy]
http_proxy = "http://proxy.example:3128"
https_proxy = "http://user:secret@proxy.example:3129"
no_proxy = "10.0.0.0/8,localhost"

[image.limits]
layers = 10
reserve = 1048576
`

func TestParse(t *testing.T) {
	t.Parallel()
	got, ignored, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	want := layout.ImageSettings{
		Parallel:              5,
		SecurityPolicyURI:     "kbs:///default/security-policy/test",
		SigstoreConfigURI:     "kbs:///default/sigstore-config/test",
		RegistryConfig:        "[[registry]]\nlocation = \"a.example\"\n",
		CredentialsURI:        "file:///etc/auth.json",
		ExtraRootCertificates: []string{"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"},
		PrivateKeys:           []string{"kbs:///default/private-key/one"},
		AllowInsecure:         true,
		Proxy:                 layout.ImageProxy{HTTPSProxy: "http://user:secret@proxy.example:3129", NoProxy: "10.0.0.0/8,localhost"},
		Limits:                layout.ImageLimits{Layers: 10, Reserve: 1 << 20},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if want := []string{"credentials", "image.image_pull_proxy.http_proxy", "image.work_dir", "kbc", "socket"}; !slices.Equal(ignored, want) {
		t.Errorf("ignored %q, want %q", ignored, want)
	}
}

// What has no effect is said.
func TestIgnored(t *testing.T) {
	t.Parallel()
	got, ignored, err := Parse([]byte("[image.image_pull_proxy]\nhttp_proxy = 'http://a'\nno_proxy = 'b'"))
	want := []string{"image.image_pull_proxy.http_proxy", "image.image_pull_proxy.no_proxy"}
	if err != nil || !slices.Equal(ignored, want) || !reflect.DeepEqual(got, layout.ImageSettings{}) {
		t.Errorf("%+v, %q, %v; want nothing and %q", got, ignored, err, want)
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ in, want string }{
		"unknown in image": {"[image]\nimage_security_polcy = 'x'", "line 2: unknown setting"},
		"unknown at top":   {"imag = 1", "unknown setting"},
		"other spelling":   {"[image]\nImage_Security_Policy = 'x'", "unknown setting"},
		"other table":      {"[Image]\nimage_security_policy = 'x'", "unknown setting"},
		"proxy spelling":   {"[image.image_pull_proxy]\nHTTPS_PROXY = 'http://a'", "unknown setting"},
		"proxy scheme":     {"[image.image_pull_proxy]\nhttps_proxy = 'ftp://secret@a'", "https_proxy is not"},
		"keys from a file": {"[image]\nPolicyKeys = {a = 'x'}", "unknown setting"},
		"type":             {"[image]\nallow_insecure_registries = 'yes'", "line 2"},
		"not TOML":         {"[image", "line 1"},
		"both":             {"[image]\nregistry_config = 'x'\nregistry_configuration_uri = 'kbs:///a/b/c'", "both registry_config and"},
		"both policies":    {"[image]\nimage_security_policy = 'x'\nimage_security_policy_uri = 'kbs:///a/b/c'", "both image_security_policy and"},
		"web URI":          {"[image]\nimage_security_policy_uri = 'https://a.example/p'", "neither kbs:///"},
		"file with ..":     {"[image]\nsigstore_config_uri = 'file:///etc/../x'", "neither kbs:///"},
		"file on a host":   {"[image]\nauthenticated_registry_credentials_uri = 'file://host/x'", "neither kbs:///"},
		"parallel":         {"[image]\nmax_concurrent_layer_downloads_per_image = -1", "is -1"},
		"limit":            {"[image.limits]\nlayers = -1", "limit layers is -1"},
		"proxy":            {"[image.image_pull_proxy]\nhttps_proxy = 'secret-word'", "https_proxy is not"},
		"many keys":        {"[image]\nprivate_keys = [" + strings.Repeat("'kbs:///a/b/c',", 17) + "]", "17 private keys"},
		"large":            {strings.Repeat("#", MaxSize+1), "larger than"},
	} {
		_, _, err := Parse([]byte(row.in))
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: error %v, want %q", name, err, row.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error quotes a value: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("[image]\nimage_pull_proxy = 1"))
	f.Add([]byte("[image.limits]\nratio = 1e3"))
	f.Fuzz(func(t *testing.T, data []byte) {
		image, _, err := Parse(data)
		if err != nil {
			return
		}
		if err := image.Validate(); err != nil {
			t.Errorf("what was accepted is not valid: %v", err)
		}
	})
}
