// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
)

const registriesConf = `
unqualified-search-registries = ["docker.io"]
short-name-mode = "enforcing"
credential-helpers = ["containers-auth.json"]

[aliases]
"busybox" = "docker.io/library/busybox"

[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "mirror-1.example:5000/hub"
[[registry.mirror]]
location = "mirror-2.example"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "mirror-3.example"
pull-from-mirror = "tag-only"

[[registry]]
prefix = "registry.example/team"
location = "internal.example/all/team"
mirror-by-digest-only = true
[[registry.mirror]]
location = "near.example/team"

[[registry]]
prefix = "registry.example/team/secret"
location = "registry.example/team/secret"
blocked = true

[[registry]]
prefix = "*.wild.example"
[[registry.mirror]]
location = "wild-mirror.example/w"
`

func places(t *testing.T, r *Registries, s string) ([]string, error) {
	t.Helper()
	found, err := r.Places(parse(t, s))
	var list []string
	for _, f := range found {
		list = append(list, f.String())
	}
	return list, err
}

func TestPlaces(t *testing.T) {
	r, err := ParseRegistries([]byte(registriesConf), false)
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string][]string{
		"docker.io/library/busybox:1": {"mirror-1.example:5000/hub/library/busybox:1", "mirror-3.example/library/busybox:1", "docker.io/library/busybox:1"},
		"docker.io/a/b@" + someDigest: {"mirror-1.example:5000/hub/a/b@" + someDigest, "mirror-2.example/a/b@" + someDigest, "docker.io/a/b@" + someDigest},
		"registry.example/team/app:2": {"internal.example/all/team/app:2"},
		"registry.example/team/app@" + someDigest: {
			"near.example/team/app@" + someDigest, "internal.example/all/team/app@" + someDigest,
		},
		"docker.io/library/app:1":        {"mirror-1.example:5000/hub/library/app:1", "mirror-3.example/library/app:1", "docker.io/library/app:1"},
		"registry.example/team:2":        {"internal.example/all/team:2"},
		"registry.example/teams/app:2":   {"registry.example/teams/app:2"},
		"registry.example/x/team/app:2":  {"registry.example/x/team/app:2"},
		"a.wild.example/x:1":             {"wild-mirror.example/w/x:1", "a.wild.example/x:1"},
		"a.b.wild.example:5000/x:1":      {"a.b.wild.example:5000/x:1"},
		"wild.example/x:1":               {"wild.example/x:1"},
		"evil-docker.io/a/b:1":           {"evil-docker.io/a/b:1"},
		"registry.example/team/secrets:": nil,
	} {
		if want == nil {
			continue
		}
		if got, err := places(t, r, in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"registry.example/team/secret:1", "registry.example/team/secret/deep@" + someDigest} {
		if got, err := places(t, r, in); !errors.Is(err, ErrBlocked) {
			t.Errorf("%s: %q, %v; want it blocked", in, got, err)
		}
	}
	var none *Registries
	if got, err := places(t, none, "a.example/b:1"); err != nil || !slices.Equal(got, []string{"a.example/b:1"}) {
		t.Errorf("without a file: %q, %v", got, err)
	}
}

func TestParseRegistries(t *testing.T) {
	if r, err := ParseRegistries(nil, false); err != nil || len(r.rules) != 0 {
		t.Errorf("an empty file: %+v, %v", r, err)
	}
	for name, tt := range map[string]struct{ conf, want string }{
		"not TOML":          {"[[registry", "registries.conf"},
		"version 1":         {"[registries.search]\nregistries = ['a.example']", "not supported"},
		"unknown key":       {"[[registry]]\nlocation = 'a.example'\nspeed = 9", `"registry.speed" is not supported`},
		"short prefix":      {"[[registry]]\nprefix = 'busybox'\nlocation = 'a.example'", "not host"},
		"short location":    {"[[registry]]\nprefix = 'a.example'\nlocation = 'busybox'", "not host"},
		"neither":           {"[[registry]]\nblocked = true", "not host"},
		"tag":               {"[[registry]]\nlocation = 'a.example/b:1'", "not host"},
		"digest":            {"[[registry]]\nlocation = 'a.example/b@" + someDigest + "'", "not host"},
		"scheme":            {"[[registry]]\nlocation = 'https://a.example'", "not host"},
		"parent":            {"[[registry]]\nlocation = 'a.example/../b'", "not host"},
		"star inside":       {"[[registry]]\nprefix = 'a.*.example'", "not host"},
		"star with path":    {"[[registry]]\nprefix = '*.example/b'", "of the form"},
		"no location":       {"[[registry]]\nprefix = 'a.example'", "location is missing"},
		"port 443":          {"[[registry]]\nlocation = 'a.example:443/b'", "write its host as a.example"},
		"prefix's port 443": {"[[registry]]\nprefix = '[2001:db8::1]:443'\nlocation = 'a.example'", "write its host as [2001:db8::1]"},
		"mirror's port 443": {"[[registry]]\nlocation = 'a.example'\n[[registry.mirror]]\nlocation = 'b.example:443'", "write its host as b.example"},
		"index.docker.io":   {"[[registry]]\nlocation = 'index.docker.io'\nblocked = true", "write its host as docker.io"},
		"registry-1":        {"[[registry]]\nlocation = 'registry-1.docker.io/library'\nblocked = true", "write its host as docker.io"},
		"star and port 443": {"[[registry]]\nprefix = '*.a.example:443'\nblocked = true", "without port 443"},
		"star in capitals":  {"[[registry]]\nprefix = '*.A.example'\nblocked = true", "in lower case"},
		"only a star":       {"[[registry]]\nprefix = '*'", "of the form"},
		"mirror is empty":   {"[[registry]]\nlocation = 'a.example'\n[[registry.mirror]]", "not host"},
		"mirror's kind":     {"[[registry]]\nlocation = 'a.example'\n[[registry.mirror]]\nlocation='b.example'\npull-from-mirror='never'", "pull-from-mirror"},
		"both":              {"[[registry]]\nlocation = 'a.example'\nmirror-by-digest-only=true\n[[registry.mirror]]\nlocation='b.example'\npull-from-mirror='all'", "beside"},
		"twice":             {"[[registry]]\nlocation = 'a.example'\n[[registry]]\nprefix = 'a.example'\nlocation='b.example'", "two registries"},
		"insecure":          {"[[registry]]\nlocation = 'a.example'\ninsecure = true", "not allowed"},
		"insecure mirror":   {"[[registry]]\nlocation = 'a.example'\n[[registry.mirror]]\nlocation='b.example'\ninsecure = true", "not allowed"},
		"credential helper": {"credential-helpers = ['osxkeychain']", "credential helper"},
		"too many mirrors":  {"[[registry]]\nlocation = 'a.example'\n" + strings.Repeat("[[registry.mirror]]\nlocation='b.example'\n", maxMirrors+1), "more than"},
		"too large":         {strings.Repeat("#", MaxRegistriesSize+1), "larger than"},
	} {
		if r, err := ParseRegistries([]byte(tt.conf), false); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %+v, %v; want %q", name, r, err, tt.want)
		}
	}
}

// A mirror that is down, has nothing, or has something else is passed over, also in the middle of a blob; what comes
// from a mirror is judged like anything else.
func TestMirrors(t *testing.T) {
	conf := "[[registry]]\nlocation = 'registry.example'\n[[registry.mirror]]\nlocation = 'one.example/x'\n[[registry.mirror]]\nlocation = 'two.example'"
	r, err := ParseRegistries([]byte(conf), false)
	if err != nil {
		t.Fatal(err)
	}
	one, two, own := "one.example", "two.example", "registry.example"
	all := answer{send: -1}
	for name, tt := range map[string]struct {
		answers []answer
		hosts   []string
		want    string
	}{
		"the first has it":       {[]answer{all}, []string{one}, ""},
		"not at the first":       {[]answer{{status: 404}, all}, []string{one, two}, ""},
		"forbidden, then broken": {[]answer{{status: 403}, {status: 503}, {status: 503}, all}, []string{one, two, two, own}, ""},
		"gone in the middle": {
			[]answer{{send: enough, then: io.ErrUnexpectedEOF}, {fail: io.EOF}, all}, []string{one, one, two}, "",
		},
		"shorter": {[]answer{{send: enough}, {send: 0}, all}, []string{one, one, two}, ""},
		"nowhere": {[]answer{{status: 404}}, []string{one, two, own}, "registry.example/a/b:1: not found"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{data: blobOf(1 << 20), answers: tt.answers}
				data, err := fetchBlob(t, s, r, s.data)
				if tt.want == "" && (err != nil || !bytes.Equal(data, s.data)) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("%d bytes, %v", len(data), err)
				}
				if !slices.Equal(s.hosts, tt.hosts) {
					t.Errorf("asked %q, want %q", s.hosts, tt.hosts)
				}
			})
		})
	}
}

// A manifest with another digest is not taken from a mirror; the registry itself is asked.
func TestMirrorWithOtherManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := ParseRegistries([]byte("[[registry]]\nlocation = 'registry.example'\n[[registry.mirror]]\nlocation = 'one.example'"), false)
		if err != nil {
			t.Fatal(err)
		}
		bad, good := &script{data: []byte("bad"), answers: []answer{{send: -1}}}, &script{data: []byte("good"), answers: []answer{{send: -1}}}
		c := newClientWith(Config{Registries: r}, strict{next: byHost{"one.example": bad, "registry.example": good}})
		defer c.Close()
		data, err := c.Manifest(t.Context(), parse(t, "registry.example/a/b:1"), digest.FromBytes(good.data))
		if err != nil || string(data) != "good" || len(bad.hosts) != 1 {
			t.Errorf("%q, %v, %d requests to the mirror", data, err, len(bad.hosts))
		}
		if _, err := c.Manifest(t.Context(), parse(t, "registry.example/a/b:1"), digest.FromString("third")); !errors.Is(err, ErrDigest) {
			t.Errorf("no place has it: %v", err)
		}
	})
}

// Threat: a blocked or mirrored registry is reached under a second name. Seen: no such name is a reference, and the rule
// itself, for a host or a part of it, is taken.
func TestBlockedHasNoSecondName(t *testing.T) {
	r, err := ParseRegistries([]byte("[[registry]]\nlocation = 'docker.io'\nblocked = true\n[[registry]]\nlocation = 'docker.io/team'\n[[registry]]\nlocation = 'r.example/x'\nblocked = true"), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		"docker.io/library/app:1", "docker.io/app:1", "index.docker.io/library/app:1", "index.docker.io/app:1", "registry-1.docker.io/library/app:1", "docker.io:443/library/app:1",
		"r.example/x/y:1", "r.example:443/x/y:1", "R.example/x/y:1", "r.example./x/y:1",
	} {
		ref, err := ParseReference(s)
		if err == nil {
			_, err = r.Places(ref)
		}
		if err == nil {
			t.Errorf("%s is not blocked", s)
		}
	}
	if got, err := places(t, r, "docker.io/team/app:1"); err != nil || !slices.Equal(got, []string{"docker.io/team/app:1"}) {
		t.Errorf("%q, %v", got, err)
	}
}

type byHost map[string]http.RoundTripper

func (b byHost) RoundTrip(req *http.Request) (*http.Response, error) {
	return b[req.URL.Host].RoundTrip(req)
}

func TestBlockedAsksNobody(t *testing.T) {
	r, err := ParseRegistries([]byte("[[registry]]\nlocation = 'registry.example'\nblocked = true"), false)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{answers: []answer{{send: -1}}}
	c := newClientWith(Config{Registries: r}, strict{next: s})
	defer c.Close()
	ref := parse(t, "registry.example/a/b:1")
	_, err1 := c.Resolve(t.Context(), ref)
	_, err2 := c.Blob(t.Context(), ref, ocispec.Descriptor{Digest: someDigest})
	if !errors.Is(err1, ErrBlocked) || !errors.Is(err2, ErrBlocked) || len(s.hosts) != 0 {
		t.Errorf("%v, %v, %d requests", err1, err2, len(s.hosts))
	}
}

// Insecure means that host only, and only where the guest's owner allows it.
func TestInsecure(t *testing.T) {
	r := registrytest.New(t)
	addImage(t, r, "v1", "s390x")
	plain := httptest.NewServer(http.HandlerFunc(answerManifest))
	defer plain.Close()
	plainHost := strings.TrimPrefix(plain.URL, "http://")
	conf := "[[registry]]\nlocation = '" + r.Host() + "'\ninsecure = true\n[[registry]]\nlocation = '" + plainHost + "'\ninsecure = true"
	if _, err := ParseRegistries([]byte(conf), false); !errors.Is(err, ErrInsecure) {
		t.Errorf("error %v, want ErrInsecure", err)
	}
	registries, err := ParseRegistries([]byte(conf), true)
	if err != nil {
		t.Fatal(err)
	}
	c := New(Config{Registries: registries})
	defer c.Close()
	for _, ref := range []string{r.Reference("v1"), plainHost + "/a/b:1"} {
		if _, err := c.Resolve(t.Context(), parse(t, ref)); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	other := registrytest.New(t)
	addImage(t, other, "v1", "s390x")
	if _, err := c.Resolve(t.Context(), parse(t, other.Reference("v1"))); !errors.Is(err, ErrUntrusted) {
		t.Errorf("a registry that is not listed: %v", err)
	}
}

func FuzzParseRegistries(f *testing.F) {
	f.Add([]byte(registriesConf), "docker.io/a/b:1")
	f.Add([]byte("[[registry]]\nprefix='*.a.example'\nlocation='b.example/c'"), "x.a.example/y@"+someDigest)
	f.Fuzz(func(t *testing.T, data []byte, s string) {
		r, err := ParseRegistries(data, false)
		if err != nil {
			return
		}
		if len(r.insecure) != 0 {
			t.Fatal("an insecure registry got through")
		}
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		places, err := r.Places(ref)
		if err == nil && len(places) == 0 {
			t.Fatal("no places and no error")
		}
		for _, p := range places {
			if p.Digest != ref.Digest || p.Tag != ref.Tag || !explicitHost(p.Host) {
				t.Fatalf("%+v becomes %+v", ref, p)
			}
		}
	})
}
