// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

func TestParseReference(t *testing.T) {
	for s, want := range map[string]Reference{
		"docker.io/library/busybox":               {"docker.io", "library/busybox", "latest", ""},
		"docker.io/team/app:1":                    {"docker.io", "team/app", "1", ""},
		"r.example:4430/app:1":                    {"r.example:4430", "app", "1", ""},
		"localhost/a:b":                           {"localhost", "a", "b", ""},
		"10.0.2.2:5000/demo/busybox:1.36":         {"10.0.2.2:5000", "demo/busybox", "1.36", ""},
		"[::1]:5000/a:b":                          {"[::1]:5000", "a", "b", ""},
		"[2001:db8::1]/x@" + someDigest:           {"[2001:db8::1]", "x", "", someDigest},
		"[2001:db8::1]/x/y":                       {"[2001:db8::1]", "x/y", "latest", ""},
		"quay.io/a/b@" + someDigest:               {"quay.io", "a/b", "", someDigest},
		"quay.io/a/b:tag@" + someDigest:           {"quay.io", "a/b", "", someDigest},
		"registry.example/a@" + sha512OfNothing(): {"registry.example", "a", "", digest.Digest(sha512OfNothing())},
	} {
		got, err := ParseReference(s)
		if err != nil || got != want {
			t.Errorf("ParseReference(%q) = %+v, %v; want %+v", s, got, err, want)
		}
		if again, err := ParseReference(got.String()); err != nil || again != got {
			t.Errorf("%q is written back as %q", s, got)
		}
	}
	for s, want := range map[string]string{
		"": "", "busybox": "does not name its registry", "library/busybox:1": "does not name its registry",
		"UPPER.example/A:b": "", "docker.io/a:b c": "", "docker.io/../a": "", "https://docker.io/a": "", "docker.io/": "",
		"quay.io/a@sha256:00": "", "quay.io/a@md5:d41d8cd98f00b204e9800998ecf8427e": "", "quay.io/a:": "", someDigest: "",
		"quay.io/" + strings.Repeat("a", MaxReferenceSize): "longer than",
		"Quay.io/a": "write its registry's host as quay.io", "[2001:DB8::1]/a": "host as [2001:db8::1]", "[2001:db8:0::1]:05/a": "host as [2001:db8::1]:5",
		"[::]:0/a": "no valid port", "a.example:65536/a": "no valid port", "[:::]/a": "no valid IPv6", "[::1%25lo]/a": "", "::1/a": "", "[::1/a": "", "[::1]5000/a": "",
		"[::ffff:a00:1]/a": "no valid IPv6", "[127.0.0.1]/a": "",
		// Second names of what policies and registries.conf know under the first one.
		"r.example:443/a": "host as r.example", "[2001:db8::1]:443/a:1": "host as [2001:db8::1]", "r.example:0443/a@" + someDigest: "host as r.example",
		"docker.io:443/library/a": "host as docker.io", "docker.io/app": "write docker.io/library/app", "docker.io/app:1": "write docker.io/library/app",
		"docker.io/app@" + someDigest: "write docker.io/library/app", "index.docker.io/library/app:1": "host as docker.io", "index.docker.io/app": "host as docker.io",
		"registry-1.docker.io/library/app:1": "host as docker.io", "registry-1.docker.io:443/a/b": "host as docker.io", "r.example./a": "", "docker.io./a/b": "",
	} {
		if got, err := ParseReference(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseReference(%.60q) = %+v, %v; want an error with %q", s, got, err, want)
		}
	}
}

func sha512OfNothing() string { return digest.SHA512.FromBytes(nil).String() }

// manifestJSON returns a manifest with something changed.
func manifestJSON(t *testing.T, change func(m map[string]any)) []byte {
	t.Helper()
	desc := func(mediaType string) map[string]any {
		return map[string]any{"mediaType": mediaType, "digest": someDigest, "size": 3}
	}
	m := map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest,
		"config": desc(ocispec.MediaTypeImageConfig), "layers": []any{desc(ocispec.MediaTypeImageLayerGzip)},
	}
	if change != nil {
		change(m)
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestParseManifest(t *testing.T) {
	for name, change := range map[string]func(map[string]any){
		"OCI":                    nil,
		"OCI without media type": func(m map[string]any) { delete(m, "mediaType") },
		"Docker": func(m map[string]any) {
			m["mediaType"] = mediaTypeDockerManifest
			m["config"].(map[string]any)["mediaType"] = mediaTypeDockerConfig
		},
	} {
		if m, err := ParseManifest(manifestJSON(t, change)); err != nil || len(m.Layers) != 1 {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	for name, change := range map[string]func(map[string]any){
		"schema 1":          func(m map[string]any) { m["schemaVersion"] = 1 },
		"schema 1 layers":   func(m map[string]any) { m["fsLayers"] = []any{} },
		"also an index":     func(m map[string]any) { m["manifests"] = []any{} },
		"other media type":  func(m map[string]any) { m["mediaType"] = ocispec.MediaTypeImageIndex },
		"an artifact":       func(m map[string]any) { m["config"].(map[string]any)["mediaType"] = "application/x" },
		"no layers":         func(m map[string]any) { m["layers"] = []any{} },
		"too many layers":   func(m map[string]any) { m["layers"] = make([]map[string]any, MaxLayers+1) },
		"digest of a path":  func(m map[string]any) { m["config"].(map[string]any)["digest"] = "sha256:../../x" },
		"sha384":            func(m map[string]any) { m["config"].(map[string]any)["digest"] = "sha384:" + strings.Repeat("0", 96) },
		"negative size":     func(m map[string]any) { m["config"].(map[string]any)["size"] = -1 },
		"size is a string":  func(m map[string]any) { m["config"].(map[string]any)["size"] = "1" },
		"digest is missing": func(m map[string]any) { delete(m["config"].(map[string]any), "digest") },
	} {
		if m, err := ParseManifest(manifestJSON(t, change)); err == nil {
			t.Errorf("%s: %+v, want an error", name, m)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add("quay.io/a/b:tag@" + someDigest)
	f.Add("busybox")
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Fatalf("%q becomes %q, which is %+v, %v", s, ref, again, err)
		}
		if !explicitHost(ref.Host) || strings.Contains(ref.Repository, "..") {
			t.Fatalf("%q: %+v", s, ref)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + someDigest +
		`","size":2},"layers":[{"mediaType":"x","digest":"` + someDigest + `","size":3}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + someDigest +
		`","size":3,"platform":{"os":"linux","architecture":"s390x"}}]}`))
	f.Add([]byte(`{"os":"linux","architecture":"s390x","rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, indexErr := parseIndex(data, "s390x")
		m, err := ParseManifest(data)
		if err == nil && indexErr == nil {
			t.Fatal("one document is both an index and a manifest")
		}
		if err == nil {
			for _, d := range append(m.Layers, m.Config) {
				if checkDigest(d.Digest) != nil || d.Size < 0 {
					t.Fatalf("descriptor %+v", d)
				}
			}
		}
		ids, err := parseConfig(data, "s390x")
		for _, d := range ids {
			if err == nil && checkDigest(d) != nil {
				t.Fatalf("diff_id %q", d)
			}
		}
	})
}
