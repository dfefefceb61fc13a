// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package guestimage

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/signtest"
	"github.com/cloister-cc/cloister/keys"
)

// settingsDir is a folder with a policy that names a key beside it, and one in the guest.
func settingsDir(t *testing.T) (dir string, public []byte) {
	t.Helper()
	signer, err := signtest.New()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = signer.PublicKey(); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for name, content := range map[string]string{
		"cosign.pub":      string(public),
		"policy.json":     `{"default":[{"type":"sigstoreSigned","keyPath":"cosign.pub"}],"transports":{"docker":{"a.example":[{"type":"sigstoreSigned","keyPath":"kbs:///default/cosign/key"}]}}}`,
		"cdh.toml":        "[image]\nimage_security_policy_uri = 'kbs:///default/policy/one'\nwork_dir = '/run/x'\n",
		"guest.toml":      "[image]\nimage_security_policy_uri = 'file:///etc/policy.json'\n",
		"auth.toml":       "[image]\nauthenticated_registry_credentials_uri = 'kbs:///default/auth/one'\n",
		"cert.toml":       "[image]\nextra_root_certificates = ['''\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n''']\n",
		"conf.toml":       "[image]\nregistry_config = 'x = 1'\n",
		"registries.conf": "[[registry]]\nlocation = \"a.example\"\ninsecure = true\n",
		"sigs.yaml":       "default-docker:\n  lookaside: https://sigs.example/\n",
		"private.pem":     "no key",
		"empty.json":      " \n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, public
}

func resourceOf(t *testing.T, uri string, data []byte) resource {
	t.Helper()
	name, err := keys.ParseURI(uri)
	if err != nil {
		t.Fatal(err)
	}
	return resource{name, keys.NewSecret(data)}
}

func TestImageSettings(t *testing.T) {
	t.Parallel()
	dir, public := settingsDir(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	key := resourceOf(t, "kbs:///default/cosign/key", public)
	policy := resourceOf(t, "kbs:///default/policy/one", []byte(layout.InsecureAcceptAnything))
	s, err := loadImageSettings(&ImageOptions{
		Policy: in("policy.json"), SigstoreConfig: in("sigs.yaml"), Registries: in("registries.conf"), AllowInsecure: true,
		HTTPSProxy: "http://p.example:1", NoProxy: "b.example",
	}, []resource{key})
	if err != nil {
		t.Fatal(err)
	}
	if s.policy == nil || !reflect.DeepEqual(s.PolicyKeys, map[string][]byte{"cosign.pub": public}) {
		t.Errorf("policy %v, keys %q", s.policy, s.PolicyKeys)
	}
	if !strings.Contains(s.RegistryConfig, "a.example") || !strings.Contains(s.SigstoreConfig, "sigs.example") || s.Proxy.HTTPSProxy == "" {
		t.Errorf("settings %+v", s.ImageSettings)
	}
	for name, row := range map[string]struct {
		o         ImageOptions
		resources []resource
		want      []string // of warnings
	}{
		"nothing":          {ImageOptions{}, nil, []string{"no image policy"}},
		"accept":           {ImageOptions{Policy: AcceptAnything}, nil, []string{"insecureAcceptAnything: the registry chooses what they are (default)"}},
		"policy of a key":  {ImageOptions{CDHConfig: in("cdh.toml")}, []resource{policy}, []string{"(default)", "without effect in this guest: image.work_dir"}},
		"policy of a file": {ImageOptions{CDHConfig: in("guest.toml")}, nil, nil},
	} {
		s, err := loadImageSettings(&row.o, row.resources)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := s.warnings()
		if len(got) != len(row.want) || slices.ContainsFunc(row.want, func(w string) bool { return !strings.Contains(strings.Join(got, "\n"), w) }) {
			t.Errorf("%s: warnings %q, want %q", name, got, row.want)
		}
	}
}

func TestImageSettingsErrors(t *testing.T) {
	t.Parallel()
	dir, _ := settingsDir(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	for name, row := range map[string]struct {
		o                 ImageOptions
		input, want, hint string
	}{
		"no such policy":   {ImageOptions{Policy: in("none")}, "image-policy", "no such file", ""},
		"empty policy":     {ImageOptions{Policy: in("empty.json")}, "image-policy", "is empty", "leave --image-policy out"},
		"bad policy":       {ImageOptions{Policy: in("cdh.toml")}, "image-policy", "parse", ""},
		"key of no secret": {ImageOptions{Policy: in("policy.json")}, "image-policy", "kbs:///default/cosign/key", "add --secret kbs:///default/cosign/key=FILE"},
		"two policies":     {ImageOptions{Policy: AcceptAnything, CDHConfig: in("cdh.toml")}, "image-policy", "sets it, too", "one place"},
		"policy not there": {ImageOptions{CDHConfig: in("cdh.toml")}, "image-policy", "kbs:///default/policy/one", "add --secret"},
		"auth not there":   {ImageOptions{CDHConfig: in("auth.toml")}, "cdh-config", "kbs:///default/auth/one", "add --secret"},
		"bad registries":   {ImageOptions{CDHConfig: in("conf.toml")}, "registries-conf", "x", ""},
		"insecure":         {ImageOptions{Registries: in("registries.conf")}, "registries-conf", "insecure", ""},
		"two registries":   {ImageOptions{Registries: in("registries.conf"), CDHConfig: in("conf.toml")}, "registries-conf", "sets it, too", "one place"},
		"bad lookaside":    {ImageOptions{Policy: AcceptAnything, SigstoreConfig: in("registries.conf")}, "sigstore-config", "lookaside", ""},
		"proxy of others":  {ImageOptions{HTTPSProxy: "ftp://a.example"}, "https-proxy", "https_proxy", ""},
		"no proxy":         {ImageOptions{NoProxy: "a.example"}, "no-proxy", "no proxy to go without", "--https-proxy"},
		"no certificate":   {ImageOptions{CDHConfig: in("cert.toml")}, "cdh-config", "no certificate in PEM", ""},
		"proxy":            {ImageOptions{HTTPSProxy: "nonsense"}, "https-proxy", "https_proxy", ""},
	} {
		_, err := loadImageSettings(&row.o, nil)
		e, ok := err.(*InputError) //nolint:errorlint // it is to be the outermost
		if !ok || e.Input != row.input || !strings.Contains(e.Error(), row.want) || !strings.Contains(e.Hint(), row.hint) {
			t.Errorf("%s: error %v (%+v), want of %s: %q with hint %q", name, err, e, row.input, row.want, row.hint)
		}
	}
	_, err := readPrivateKey("kbs:///a/b/c", in("private.pem"))
	if err == nil || !strings.Contains(err.Error(), "is neither a key of RSA") {
		t.Errorf("a private key that is none: %v", err)
	}
}

// The policy of the guest is asked about the images of its root disk, too.
func TestPolicyOfBakedImages(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ policy, want string }{
		"none":   {"", ""},
		"accept": {layout.InsecureAcceptAnything, ""},
		"reject": {`{"default":[{"type":"reject"}]}`, "is refused"},
		"signed": {`{"default":[{"type":"sigstoreSigned","keyPath":"cosign.pub"}]}`, "is refused"},
	} {
		dir, _ := settingsDir(t)
		o := inputs(t)
		o.Images = parseImages(t, "127.0.0.1:1/a:1=oci:"+imageLayout(t, o.Arch, "x", ""))
		if row.policy != "" {
			o.Image.Policy = put(t, filepath.Join(dir, "asked.json"), []byte(row.policy))
		}
		_, err := testBuilder(o).build(t.Context())
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: error %v, want %q", name, err, row.want)
		}
	}
	dir, _ := settingsDir(t)
	o := inputs(t)
	o.Images = parseImages(t, "127.0.0.1:1/a:1=oci:"+imageLayout(t, o.Arch, "x", ""))
	o.Image.CDHConfig = filepath.Join(dir, "guest.toml")
	if _, err := testBuilder(o).build(t.Context()); err == nil || !strings.Contains(err.Error(), "give it by --image-policy") {
		t.Errorf("a policy that only the guest has: %v", err)
	}
}
