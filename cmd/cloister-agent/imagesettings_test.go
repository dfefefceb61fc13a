// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/config"
	"github.com/cloister-cc/cloister/image"
	"github.com/cloister-cc/cloister/image/sign"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys/file"
)

// resourcesDir is a folder of resources, and the store that a guest makes of it.
func resourcesDir(t *testing.T, files map[string]string) (string, *file.Store) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := file.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, s
}

func TestApplySettings(t *testing.T) {
	const auth = `{"auths":{"a.example":{"auth":"dTpw"}}}`
	_, resources := resourcesDir(t, map[string]string{"a/auth/one": auth, "a/policy/accept": layout.InsecureAcceptAnything})
	here := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(here, []byte("[[registry]]\nlocation = 'a.example'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := imageSettings{
		ImageSettings: layout.ImageSettings{
			SecurityPolicyURI: "kbs:///a/policy/accept", CredentialsURI: "kbs:///a/auth/one", RegistryConfigURI: "file://" + here,
			Proxy: layout.ImageProxy{HTTPSProxy: "http://p.example:1", NoProxy: "x"}, Parallel: 7, AllowInsecure: true, PrivateKeys: []string{"kbs:///a/b/c"},
			Limits: layout.ImageLimits{Layers: 3},
		},
		resources: resources, tempDir: filepath.Join(t.TempDir(), "signatures"),
	}
	var c image.Config
	if err := s.apply(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	if string(c.Auth) != auth || !strings.Contains(string(c.Registries), "a.example") || c.HTTPSProxy == "" || c.NoProxy != "x" ||
		c.Limits.Parallel != 7 || c.Limits.Layers != 3 || !c.AllowInsecure || len(c.PrivateKeys) != 1 {
		t.Errorf("configuration %+v", c)
	}
	if err := allows(t.Context(), c.Policy); err != nil {
		t.Errorf("policy: %v", err)
	}
}

// allows asks a policy about an image that has no signature.
func allows(ctx context.Context, p *sign.Policy) error {
	return p.Check(ctx, "a.example/x:1", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", nil)
}

// The zero value refuses; a setting that is asked for and is not there is an error, never the default.
func TestSettingsFailClosed(t *testing.T) {
	_, resources := resourcesDir(t, nil)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	var c image.Config
	if err := (&imageSettings{resources: resources, tempDir: t.TempDir()}).apply(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	if err := allows(t.Context(), c.Policy); !errors.Is(err, sign.ErrRejected) {
		t.Errorf("without a policy: %v", err)
	}
	for name, s := range map[string]layout.ImageSettings{
		"no such resource":  {SecurityPolicyURI: "kbs:///a/b/c"},
		"no such file":      {SecurityPolicyURI: "file://" + empty + "x"},
		"empty file":        {SecurityPolicyURI: "file://" + empty},
		"a pipe":            {SecurityPolicyURI: "file://" + pipe},
		"a folder":          {SecurityPolicyURI: "file://" + filepath.Dir(empty)},
		"not a policy":      {SecurityPolicy: "yes"},
		"no such key":       {SecurityPolicy: `{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"}]}`},
		"relative key":      {SecurityPolicy: `{"default":[{"type":"sigstoreSigned","keyPath":"cosign.pub"}]}`},
		"no sigstore":       {SecurityPolicy: layout.InsecureAcceptAnything, SigstoreConfigURI: "kbs:///a/b/c"},
		"no credentials":    {SecurityPolicy: layout.InsecureAcceptAnything, CredentialsURI: "kbs:///a/b/c"},
		"no registries":     {SecurityPolicy: layout.InsecureAcceptAnything, RegistryConfigURI: "kbs:///a/b/c"},
		"not a certificate": {SecurityPolicy: layout.InsecureAcceptAnything, ExtraRootCertificates: []string{"x"}},
	} {
		if err := (&imageSettings{ImageSettings: s, resources: resources, tempDir: t.TempDir()}).apply(t.Context(), new(image.Config)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if c.AllowInsecure {
		t.Error("insecure registries are allowed by default")
	}
	_, resources = resourcesDir(t, map[string]string{"a/auth/one": "{}"})
	twice := imageSettings{ImageSettings: layout.ImageSettings{CredentialsURI: "kbs:///a/auth/one"}, resources: resources, tempDir: t.TempDir()}
	if err := twice.apply(t.Context(), &image.Config{Auth: []byte("{}")}); err == nil {
		t.Error("credentials from two places are accepted")
	}
}

// An agent that is not sealed uses every image unless it is told otherwise, in whichever way.
func TestUnsealedImages(t *testing.T) {
	dir, _ := resourcesDir(t, map[string]string{"a/policy/reject": `{"default":[{"type":"reject"}]}`})
	toml := filepath.Join(t.TempDir(), "cdh.toml")
	if err := os.WriteFile(toml, []byte("[image]\nimage_security_policy_uri = 'kbs:///a/policy/reject'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		a      arguments
		c      config.Config
		refuse bool
		want   string
	}{
		"nothing":            {},
		"verification":       {c: config.Config{SignatureVerification: true}, refuse: true},
		"parameter":          {a: arguments{resources: dir}, c: config.Config{ImagePolicyFile: "kbs:///a/policy/reject"}, refuse: true},
		"file":               {a: arguments{resources: dir, cdhConfig: toml}, refuse: true},
		"both":               {a: arguments{resources: dir, cdhConfig: toml}, c: config.Config{ImagePolicyFile: "kbs:///a/policy/reject"}, want: "given both"},
		"no resources":       {a: arguments{cdhConfig: toml}, want: "no such key"},
		"no such folder":     {a: arguments{resources: dir + "x"}, want: "no such file"},
		"no such file":       {a: arguments{cdhConfig: toml + "x"}, want: "no such file"},
		"wrong URI":          {c: config.Config{ImagePolicyFile: "/etc/policy.json"}, want: "neither kbs:///"},
		"credentials absent": {c: config.Config{ImageRegistryAuth: "file:///does/not/exist"}, want: "no such file"},
	} {
		c, err := row.a.images(t.Context(), &row.c, slog.New(slog.DiscardHandler), t.TempDir())
		if row.want != "" {
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%s: error %v, want %q", name, err, row.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := allows(t.Context(), c.Policy); errors.Is(err, sign.ErrRejected) != row.refuse {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// refusing is an agent.Images that gives one error; its other methods are not called.
type refusing struct {
	agent.Images
	err error
}

func (r refusing) Mount(context.Context, string, string, string) (string, error) { return "", r.err }

// Whoever asked for an image that is refused is told so by agent's error, with the reason.
func TestRefusedImageIsDenied(t *testing.T) {
	for _, row := range []struct {
		err    error
		denied bool
	}{
		{fmt.Errorf("image: %w", sign.ErrRejected), true},
		{fmt.Errorf("image: %w", sign.ErrUnsigned), true},
		{errors.New("registry is down"), false},
		{nil, false},
	} {
		_, err := timedImages{refusing{err: row.err}, time.Minute}.Mount(t.Context(), "c1", "a.example/x:1", "/")
		if errors.Is(err, agent.ErrDenied) != row.denied || !errors.Is(err, row.err) || row.err != nil && err.Error() != row.err.Error() {
			t.Errorf("%v: got %v", row.err, err)
		}
	}
}
