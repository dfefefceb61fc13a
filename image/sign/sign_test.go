// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sign

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
)

const (
	accept   = `[{"type":"insecureAcceptAnything"}]`
	rejected = `[{"type":"reject"}]`
)

// What has no policy is refused, and nothing is fetched for it.
func TestZeroValue(t *testing.T) {
	var none *Policy
	empty, err := New(Config{Policy: []byte(" \n")})
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*Policy{"nil": none, "zero": {}, "empty": empty} {
		src := newSource()
		outcome(t, p.Check(t.Context(), testRef, testDigest(), src), "reject: there is no policy")
		if len(src.requests) > 0 {
			t.Errorf("%s: fetched %v", name, src.requests)
		}
	}
}

func TestReferences(t *testing.T) {
	p := load(t, `{"default":`+accept+`}`, nil)
	other := digest.FromString("other")
	for ref, want := range map[string]string{
		testRef:                                "",
		testRepo + "@" + testDigest().String(): "",
		testRef + "@" + testDigest().String():  "",
		"localhost/a:1":                        "",
		"localhost:5000/a:1":                   "",
		"docker.io/library/busybox:1":          "",
		testRepo + "@" + other.String():        "the manifest has digest " + testDigest().String(),
		testRepo:                               "neither a tag nor a digest",
		"busybox:1":                            "does not name its registry",
		"library/busybox:1":                    "does not name its registry",
		"":                                     "image reference",
		"registry.example/UPPER:1":             "image reference",
		"registry.example/../a:1":              "image reference",
	} {
		outcome(t, p.Check(t.Context(), ref, testDigest(), newSource()), want)
	}
	for _, d := range []digest.Digest{"", "sha256:abc", "md5:" + digest.Digest(strings.Repeat("0", 32)), "sha384:" + digest.Digest(strings.Repeat("0", 96))} {
		outcome(t, p.Check(t.Context(), testRef, d, newSource()), "digest")
	}
	outcome(t, p.Check(t.Context(), testRef, digest.SHA512.FromString("x"), newSource()), "")
}

// TestScopes has the rules of containers-policy.json(5) that need no signature: the narrowest scope alone counts, all
// of its requirements must be met, and the last resort is default.
func TestScopes(t *testing.T) {
	docker := func(scopes string) string {
		return `{"default":` + rejected + `,"transports":{"docker":{` + scopes + `}}}`
	}
	both := `[{"type":"insecureAcceptAnything"},{"type":"reject"}]`
	digested := testRepo + "@" + testDigest().String()
	for name, tt := range map[string]struct{ policy, ref, want string }{
		"default accepts":         {`{"default":` + accept + `}`, testRef, ""},
		"default rejects":         {`{"default":` + rejected + `}`, testRef, "reject: policy of default"},
		"all must be met":         {`{"default":` + both + `}`, testRef, "reject: "},
		"no docker transport":     {`{"default":` + accept + `,"transports":{}}`, testRef, ""},
		"another transport":       {`{"default":` + rejected + `,"transports":{"docker-daemon":{"":` + accept + `}}}`, testRef, "reject: "},
		"exact reference":         {docker(`"` + testRef + `":` + accept), testRef, ""},
		"exact, another tag":      {docker(`"` + testRef + `":` + accept), testRepo + ":v2", "reject: "},
		"exact digest":            {docker(`"` + digested + `":` + accept), digested, ""},
		"tag beside a digest":     {docker(`"` + testRef + `":` + accept), testRef + "@" + testDigest().String(), "reject: "},
		"repository":              {docker(`"` + testRepo + `":` + accept), testRef, ""},
		"repository by digest":    {docker(`"` + testRepo + `":` + accept), digested, ""},
		"half a name":             {docker(`"registry.example/team/ap":` + accept), testRef, "reject: "},
		"namespace":               {docker(`"registry.example/team":` + accept), testRef, ""},
		"half a namespace":        {docker(`"registry.example/tea":` + accept), testRef, "reject: "},
		"host":                    {docker(`"registry.example":` + accept), testRef, ""},
		"another host":            {docker(`"registry.example.org":` + accept), testRef, "reject: "},
		"host with a port":        {docker(`"registry.example":` + accept), "registry.example:5000/team/app:v1", "reject: "},
		"port":                    {docker(`"registry.example:5000":` + accept), "registry.example:5000/team/app:v1", ""},
		"wildcard":                {docker(`"*.example":` + accept), testRef, ""},
		"wildcard and a port":     {docker(`"*.example":` + accept), "registry.example:5000/team/app:v1", ""},
		"wildcard is no host":     {docker(`"*.registry.example":` + accept), testRef, "reject: "},
		"whole transport":         {docker(`"":` + accept), testRef, ""},
		"narrow rejects":          {docker(`"":` + accept + `,"` + testRepo + `":` + rejected), testRef, `reject: policy of scope "` + testRepo + `"`},
		"narrow accepts":          {docker(`"":` + rejected + `,"registry.example/team":` + accept), testRef, ""},
		"namespace over wildcard": {docker(`"*.example":` + rejected + `,"registry.example":` + accept), testRef, ""},
		"docker hub":              {docker(`"docker.io/library/busybox":` + accept), "docker.io/library/busybox:1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource()
			outcome(t, load(t, tt.policy, nil).Check(t.Context(), tt.ref, testDigest(), src), tt.want)
			if len(src.requests) > 0 {
				t.Errorf("fetched %v, and nothing is needed", src.requests)
			}
		})
	}
}

func TestMalformedPolicies(t *testing.T) {
	for name, policy := range map[string]string{
		"not JSON":               `default`,
		"null":                   `null`,
		"no default":             `{}`,
		"null default":           `{"default":null}`,
		"empty list":             `{"default":[]}`,
		"empty list in a scope":  `{"default":` + accept + `,"transports":{"docker":{"a":[]}}}`,
		"null transports":        `{"default":` + accept + `,"transports":null}`,
		"null transport":         `{"default":` + accept + `,"transports":{"docker":null}}`,
		"null requirement":       `{"default":[null]}`,
		"unknown field":          `{"default":` + accept + `,"defaults":` + rejected + `}`,
		"letter case":            `{"Default":` + accept + `}`,
		"letter case of type":    `{"default":[{"Type":"insecureAcceptAnything"}]}`,
		"unknown type":           `{"default":[{"type":"acceptAnything"}]}`,
		"no type":                `{"default":[{}]}`,
		"type is a number":       `{"default":[{"type":1}]}`,
		"field too many":         `{"default":[{"type":"insecureAcceptAnything","keyPath":"a"}]}`,
		"key twice":              `{"default":` + rejected + `,"default":` + accept + `}`,
		"key twice, deep":        `{"default":[{"type":"reject","type":"insecureAcceptAnything"}]}`,
		"key twice, escaped":     `{"default":[{"type":"reject","\u0074ype":"insecureAcceptAnything"}]}`,
		"scope twice":            `{"default":` + accept + `,"transports":{"docker":{"a":` + rejected + `,"a":` + accept + `}}}`,
		"data after the end":     `{"default":` + accept + `} {}`,
		"garbage after the end":  `{"default":` + accept + `}}`,
		"unfinished":             `{"default":` + accept,
		"too deep":               `{"default":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
		"not UTF-8":              "{\"default\":" + accept + ",\"transports\":{\"docker\":{\"\xff\":" + rejected + "}}}",
		"too large":              `{"default":` + accept + strings.Repeat(" ", MaxPolicySize) + `}`,
		"signedBaseLayer":        `{"default":[{"type":"signedBaseLayer","baseLayerIdentity":{"type":"matchExact"}}]}`,
		"in a foreign transport": `{"default":` + accept + `,"transports":{"dir":{"":[{"type":"x"}]}}}`,
	} {
		if p, err := New(Config{Policy: []byte(policy)}); err == nil || p != nil {
			t.Errorf("%s: %v, %v; want an error", name, p, err)
		}
	}
}

func TestKeyNames(t *testing.T) {
	names, err := KeyNames([]byte(`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPaths":["/b","/a"]}],"transports":{"docker":{
		"x":[{"type":"sigstoreSigned","keyPath":"kbs:///default/cosign/key","rekorPublicKeyPath":"/rekor"}],
		"y":[{"type":"sigstoreSigned","fulcio":{"caPath":"/fulcio","oidcIssuer":"i","subjectEmail":"e"},"rekorPublicKeyPaths":["/rekor","/rekor2"]}],
		"z":[{"type":"sigstoreSigned","keyData":"eA==","signedIdentity":{"type":"exactRepository","dockerRepository":"a/b"}},
			{"type":"sigstoreSigned","pki":{"caRootsPath":"/pki","subjectEmail":"e"}}]}}}`))
	want := []string{"/a", "/b", "/fulcio", "/pki", "/rekor", "/rekor2", "kbs:///default/cosign/key"}
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("%v, %v; want %v", names, err, want)
	}
	if names, err := KeyNames(nil); names != nil || err != nil {
		t.Errorf("of no policy: %v, %v", names, err)
	}
	for _, policy := range []string{`x`, `{"default":[{"type":"signedBy","keyPath":1}]}`, `{"default":[{"type":"signedBy","keyPaths":"x"}]}`} {
		if _, err := KeyNames([]byte(policy)); err == nil {
			t.Errorf("%s: no error", policy)
		}
	}
}

func TestLookasideConfiguration(t *testing.T) {
	named, err := parseReference(testRef)
	if err != nil {
		t.Fatal(err)
	}
	suffix := "/team/app@sha256=" + testDigest().Encoded()
	for name, tt := range map[string]struct {
		yaml, base string
		attached   bool
	}{
		"none":             {"", "", true},
		"comment":          {"# nothing\n", "", true},
		"default":          {"default-docker: {lookaside: https://a.example}", "https://a.example" + suffix, true},
		"old name":         {"default-docker: {sigstore: https://a.example/x}", "https://a.example/x" + suffix, true},
		"new name first":   {"default-docker: {sigstore: https://a.example, lookaside: https://b.example}", "https://b.example" + suffix, true},
		"staging":          {"default-docker: {lookaside-staging: 'file:///x', sigstore-staging: 'file:///y'}", "", true},
		"narrow first":     {"default-docker: {lookaside: https://a.example}\ndocker: {registry.example: {lookaside: https://b.example}, registry.example/team: {lookaside: https://c.example}}", "https://c.example" + suffix, true},
		"narrow is silent": {"docker: {registry.example: {lookaside: https://b.example}, registry.example/team: {use-sigstore-attachments: false}}", "https://b.example" + suffix, false},
		"narrow allows":    {"default-docker: {use-sigstore-attachments: false}\ndocker: {'*.example': {use-sigstore-attachments: true}}", "", true},
		"others":           {"docker: {registry.example/other: {lookaside: https://b.example}}", "", true},
	} {
		l, err := parseLookaside([]byte(tt.yaml))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		base, err := l.base(request{ref: named, scopeOf: named, digest: testDigest()})
		if base != tt.base || err != nil || l.attachments(named) != tt.attached {
			t.Errorf("%s: %q, %v, attachments %t; want %q, %t", name, base, err, l.attachments(named), tt.base, tt.attached)
		}
	}
	for name, yaml := range map[string]string{
		"plain HTTP":      "default-docker: {lookaside: http://a.example}",
		"file":            "default-docker: {lookaside: 'file:///etc'}",
		"password":        "docker: {a: {sigstore: 'https://user:hidden@a.example'}}",
		"query":           "docker: {a: {lookaside: 'https://a.example/?x'}}",
		"no host":         "docker: {a: {lookaside: 'https:///a'}}",
		"unknown field":   "default-docker: {looksaside: https://a.example}",
		"twice":           "default-docker: {}\ndefault-docker: {}",
		"two documents":   "default-docker: {}\n---\ndefault-docker: {}",
		"too large":       strings.Repeat("#", MaxPolicySize+1),
		"not a structure": "x",
	} {
		_, err := New(Config{Policy: []byte(`{"default":` + accept + `}`), Lookaside: []byte(yaml)})
		if err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// A rejection's text goes to a console, and a part of it is a stranger's.
func TestRejectionText(t *testing.T) {
	err := reject(ErrUnsigned, "default", "a\nb\x1b[2Jc\xff"+strings.Repeat("ü", maxReasonSize))
	if s := err.Error(); strings.ContainsAny(s, "\n\x1b") || !utf8.ValidString(s) || len(s) > maxReasonSize+100 || !strings.Contains(s, "a?b?[2Jc?") {
		t.Errorf("%q", s)
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"default":` + accept + `}`))
	f.Add([]byte(`{"default":` + rejected + `,"transports":{"docker":{"a.example/b":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}}}`))
	f.Add([]byte(`{"default":[{"type":"sigstoreSigned","keyData":"eA==","signedIdentity":{"type":"matchRepository"}}]}`))
	f.Add([]byte(`{"default":[{"type":"sigstoreSigned","fulcio":{"caData":"-----BEGIN CERTIFICATE-----","oidcIssuer":"i","subjectEmail":"e"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := New(Config{Policy: data, TempDir: "unused"})
		if err != nil {
			return
		}
		// With a source that has nothing, only a policy without signatures can allow an image.
		err = p.Check(t.Context(), testRef, testDigest(), &fakeSource{})
		if err == nil && !bytes.Contains(data, []byte("insecureAcceptAnything")) && !bytes.Contains(data, []byte(`\u`)) {
			t.Fatalf("%q accepts", data)
		}
		if _, err := KeyNames(data); err != nil && p.rules != nil {
			t.Fatalf("a policy that loads has bad key names: %v", err)
		}
	})
}

func FuzzLookaside(f *testing.F) {
	f.Add([]byte(testLookaside))
	f.Add([]byte("docker: {registry.example/team: {sigstore: 'https://a.example/x', use-sigstore-attachments: false}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := parseLookaside(data)
		if err != nil {
			return
		}
		named, err := parseReference(testRef)
		if err != nil {
			t.Fatal(err)
		}
		base, err := l.base(request{ref: named, scopeOf: named, digest: testDigest()})
		if err != nil || (base != "" && !strings.HasPrefix(base, "https://")) {
			t.Fatalf("%q: %q, %v", data, base, err)
		}
	})
}
