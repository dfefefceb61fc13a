// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/types"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// authJSON returns an auth.json with a user for each key.
func authJSON(t testing.TB, users map[string]string) []byte {
	t.Helper()
	auths := make(map[string]any)
	for key, user := range users {
		auths[key] = map[string]string{"auth": b64(user + ":secret")}
	}
	data, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The credentials of a repository are those of the longest key that fits, and nobody else's. What podman would send to a
// registry is what we send, but for what only Docker reads.
func TestAuthKeys(t *testing.T) {
	hub := map[string]string{"docker.io/library/busybox": "hub", "docker.io/a/b/c": "hub", "a.example/docker.io": ""}
	for _, tt := range []struct {
		name string
		keys map[string]string // user by key
		want map[string]string // user by name of a repository
		ours bool              // podman differs
	}{
		{
			name: "hosts", keys: map[string]string{"r.example:5000": "port", "r.example": "host", "localhost": "local", "[::1]:5000": "six", "[2001:db8::1]": "sixth"},
			want: map[string]string{
				"r.example:5000/a": "port", "r.example:5000/a/b/c": "port", "r.example/a": "host", "r.example:50001/a": "", "r.example:500/a": "", "localhost/a": "local",
				"other.example/a": "", "sub.r.example/a": "", "r.example.evil.example/a": "", "[::1]:5000/a": "six", "[::1]/a": "", "[2001:db8::1]/a/b": "sixth",
				"[2001:db8::1]:5000/a": "", "localhost:5000/a": "",
			},
		},
		{
			name: "paths", keys: map[string]string{"r.example": "all", "r.example/a": "a", "r.example/a/b": "ab", "r.example/a/b/c/d": "deep", "s.example/x/y": "xy", "[::1]:5000/n": "six"},
			want: map[string]string{
				"r.example/a": "a", "r.example/a/b": "ab", "r.example/a/b/c": "ab", "r.example/a/b/c/d": "deep", "r.example/a/b/c/d/e": "deep", "r.example/a/bc": "a",
				"r.example/ab": "all", "r.example/b/a": "all", "s.example/x": "", "s.example/x/y": "xy", "s.example/x/y/z": "xy", "s.example/x/yz": "", "s.example/y": "",
				"r.example:5000/a/b": "", "[::1]:5000/n/x": "six", "[::1]:5000/nn": "",
			},
		},
		{name: "docker.io", keys: map[string]string{"docker.io": "hub"}, want: hub},
		{name: "docker's own", keys: map[string]string{"https://index.docker.io/v1/": "hub"}, want: hub},
		{name: "index.docker.io", keys: map[string]string{"index.docker.io": "hub"}, want: hub},
		{name: "registry-1.docker.io", keys: map[string]string{"registry-1.docker.io": "hub"}, want: hub},
		{name: "http index.docker.io", keys: map[string]string{"http://index.docker.io": "hub"}, want: hub},
		{name: "index.docker.io/v1/", keys: map[string]string{"index.docker.io/v1/": "hub"}, want: hub, ours: true},
		{name: "hub's namespace", keys: map[string]string{"docker.io/a": "hub"}, want: map[string]string{"docker.io/a/b/c": "hub", "docker.io/library/busybox": "", "docker.io/a/x": "hub"}},
		{name: "addresses", keys: map[string]string{"https://r.example/v1/": "r", "http://s.example:5000/": "s", "https://t.example/v2/some/thing": "t", "http://[::1]:5000/v2/": "six"}, want: map[string]string{
			"r.example/a": "r", "s.example:5000/a": "s", "t.example/other": "t", "[::1]:5000/a": "six",
		}},
		{name: "port 443", keys: map[string]string{"r.example:443": "r", "https://s.example:443/v2/": "s", "[2001:db8::1]:443/n": "six", "index.docker.io:443": "hub", "t.example": "t", "t.example:443": "other"}, want: map[string]string{
			"r.example/a": "r", "s.example/a": "s", "[2001:db8::1]/n/a": "six", "docker.io/a/b": "hub", "t.example/a": "t", "r.example:4430/a": "",
		}, ours: true},
		{name: "addresses without a scheme", keys: map[string]string{"r.example/v1/": "r", "s.example/v2/": "s", "t.example/": "t", "u.example/v2": "u", "v.example/n/": "n"}, want: map[string]string{
			"r.example/a": "r", "s.example/a": "s", "t.example/a": "t", "u.example/a": "", "u.example/v2/a": "u", "v.example/n/a": "n", "v.example/a": "",
		}, ours: true},
		{name: "other spellings", keys: map[string]string{"R.Example:05000": "r", "[2001:DB8:0::1]": "six"}, want: map[string]string{"r.example:5000/a": "r", "[2001:db8::1]/a": "six"}, ours: true},
		{name: "the plain one counts", keys: map[string]string{"r.example": "plain", "https://r.example": "url", "http://r.example/v1/": "old", "docker.io": "hub", "index.docker.io": "index"}, want: map[string]string{
			"r.example/a": "plain", "docker.io/a/b": "hub",
		}},
		{name: "docker's own and its tokens", keys: map[string]string{dockerHubKey: "hub", "https://index.docker.io/v1/access-token": "token"}, want: hub, ours: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := authJSON(t, tt.keys)
			a, err := ParseAuth(data)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "auth.json")
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			for name, want := range tt.want {
				key, c := a.lookup(parse(t, name))
				if c.user != want || (key == "") != (want == "") || (c.password == "") != (want == "") {
					t.Errorf("%s: user %q of key %q, want %q", name, c.user, key, want)
				}
				if tt.ours || strings.HasPrefix(name, "[") { // podman's references know no IPv6
					continue
				}
				named, err := reference.ParseNormalizedNamed(name)
				if err != nil {
					t.Fatal(err)
				}
				theirs, err := config.GetCredentialsForRef(&types.SystemContext{AuthFilePath: file}, named)
				if err != nil || theirs.Username != want {
					t.Errorf("%s: podman has user %q, %v; want %q", name, theirs.Username, err, want)
				}
			}
		})
	}
}

func TestParseAuth(t *testing.T) {
	for in, want := range map[string]credential{
		`{"auth":"` + b64("me:pass:word\n") + `","email":"x"}`:                {"me", "pass:word"},
		`{"auth":"` + b64("u:p") + `"}`:                                       {"u", "p"},
		`{"auth":"` + strings.TrimRight(b64("u:pa"), "=") + `"}`:              {"u", "pa"},
		`{"username":"u","password":"p w\u00fc"}`:                             {"u", "p wü"},
		`{"username":"u","password":"p:q","auth":"` + b64("u:p:q") + `"}`:     {"u", "p:q"},
		`{"username":"u","auth":"` + b64("u:p") + `"}`:                        {"u", "p"},
		`{"username":"","password":"","auth":"` + b64("u:p") + `","x":{}}`:    {"u", "p"},
		`{"identitytoken":"","registrytoken":"","auth":"` + b64("u:p") + `"}`: {"u", "p"},
	} {
		a, err := ParseAuth([]byte(`{"auths":{"r.example":` + in + `}}`))
		if err != nil || a.Len() != 1 {
			t.Errorf("%s: %v, %v", in, a, err)
			continue
		}
		if _, c := a.lookup(parse(t, "r.example/a")); c != want {
			t.Errorf("%s: %q", in, c)
		}
	}
	for _, empty := range []string{"", " \n", "{}", `{"auths":{}}`, `{"auths":null}`, "null", `{"HttpHeaders":{"User-Agent":"x"},"proxies":{"default":{"httpProxy":"y"}}}`} {
		if a, err := ParseAuth([]byte(empty)); err != nil || a.Len() != 0 {
			t.Errorf("ParseAuth(%q): %v, %v", empty, a, err)
		}
	}
	same, err := ParseAuth([]byte(`{"auths":{"h":{"auth":"` + b64("u:p") + `"},"https://h":{"username":"u","password":"p"}}}`))
	if err != nil || same.Len() != 1 {
		t.Errorf("the same twice: %v, %v", same, err)
	}
	var none *Auth
	if key, c := none.lookup(parse(t, "r.example/a")); key != "" || c != (credential{}) || none.Len() != 0 {
		t.Errorf("no credentials at all: %q, %q", key, c)
	}
}

func TestParseAuthErrors(t *testing.T) {
	entry := func(key string) string { return `{"auths":{"` + key + `":{"auth":"` + b64("u:hunter2") + `"}}}` }
	for in, want := range map[string]string{
		"[]":                                   "not JSON",
		"x":                                    "not JSON",
		`{"auths":{"h":{"auth":"hunter2`:       "not JSON",
		`{"auths":{"h":"hunter2"}}`:            "not JSON",
		`{"auths":{"h":{"auth":["hunter2"]}}}`: "not JSON",
		`{"auths":{"h":{"username":"u","password":["hunter2"]}}}`:               "not JSON",
		`{"auths":{"h":{"auth":"!"}}}`:                                          "not base64",
		`{"auths":{"h":{"auth":"` + b64("nocolon") + `"}}}`:                     "user:password",
		`{"auths":{"h":{"auth":"` + b64(":p") + `"}}}`:                          "user:password",
		`{"auths":{"h":{"auth":"` + b64("u:") + `"}}}`:                          "user:password",
		`{"auths":{"h":{}}}`:                                                    "user:password",
		`{"auths":{"h":null}}`:                                                  "user:password",
		`{"auths":{"h":{"username":"u"}}}`:                                      "user:password",
		`{"auths":{"h":{"password":"hunter2"}}}`:                                "user:password",
		`{"auths":{"h":{"username":"u","password":"p","auth":"YTpo"}}}`:         "not those in auth",
		`{"auths":{"h":{"username":"a","password":"hunter2","auth":"YTpo"}}}`:   "not those in auth",
		`{"auths":{"h":{"username":"x","auth":"YTpo"}}}`:                        "not those in auth",
		`{"auths":{"h":{"identitytoken":"hunter2"}}}`:                           "identity tokens",
		`{"auths":{"h":{"registrytoken":"hunter2","auth":"YTpo"}}}`:             "identity tokens",
		`{"credsStore":"desktop"}`:                                              "credential helper",
		`{"credHelpers":{"h":"x"}}`:                                             "credential helper",
		`{"h":{"auth":"YTpo","email":"x"}}`:                                     "form of a .dockercfg",
		`{"https://index.docker.io/v1/":{"username":"a","password":"hunter2"}}`: "form of a .dockercfg",
		entry(""):                       "not a registry's host",
		entry("https://"):               "not a registry's host",
		entry(":5000"):                  "not a registry's host",
		entry("*.example"):              "not a registry's host",
		entry("a b"):                    "not a registry's host",
		entry("u@h"):                    "not a registry's host",
		entry("h/*"):                    "neither a registry's host nor",
		entry("h/Name"):                 "neither a registry's host nor",
		entry("h/name:tag"):             "neither a registry's host nor",
		entry("h/name@" + someDigest):   "neither a registry's host nor",
		entry("h//name"):                "neither a registry's host nor",
		entry("h/../name"):              "neither a registry's host nor",
		entry("h:port"):                 "no valid port",
		entry("h:0/name"):               "no valid port",
		entry("[::1"):                   "no valid",
		entry("[fe80::1%eth0]"):         "no valid IPv6",
		entry(strings.Repeat("h", 256)): "not a registry's host",
		`{"auths":{"https://h":{"auth":"YTpo"},"http://h":{"auth":"YTpp"}}}`:             "there twice",
		`{"auths":{"docker.io":{"auth":"YTpo"},"` + dockerHubKey + `":{"auth":"YTpp"}}}`: "there twice",
		strings.Repeat(" ", MaxAuthSize+1):                                               "larger than",
		`{"auths":{` + strings.Repeat(`"a":{},`, maxAuths) + `"b":{}}}`:                  "user:password",
	} {
		_, err := ParseAuth([]byte(in))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseAuth(%.80q): %v, want %q", in, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows a credential: %v", err)
		}
	}
	many := make(map[string]string)
	for i := range maxAuths + 1 {
		many[fmt.Sprintf("h%d", i)] = "u"
	}
	if _, err := ParseAuth(authJSON(t, many)); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too many: %v", err)
	}
}

func TestAuthIsNotPrinted(t *testing.T) {
	a, err := ParseAuth(authJSON(t, map[string]string{"r.example": "me"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{
		fmt.Sprintf("%v %+v %#v %s %x", a, a, a, a, a), fmt.Sprint(struct{ A *Auth }{a}), a.LogValue().String(), slog.AnyValue(a).Resolve().String(),
	} {
		if strings.Contains(out, "secret") || strings.Contains(out, "me:") {
			t.Errorf("credentials are printed: %s", out)
		}
	}
}

func FuzzParseAuth(f *testing.F) {
	for _, seed := range []string{
		`{"auths":{"h":{"auth":"dTpw"}}}`,
		`{"auths":{"docker.io/a/b":{"auth":"dTpw"},"https://index.docker.io/v1/":{"username":"u","password":"p"}}}`,
		`{"auths":{"[2001:DB8::1]:05000/n/":{"auth":"dTpw","username":"u","password":"p"},"http://[::1]/v2/":{"auth":"dTpw"}}}`,
		`{"auths":{"r.example":{"auth":"dTpw"},"https://r.example":{"auth":"dTpx"},"r.example/v1/":{"auth":"dTpx"}}}`,
		`{"auths":{"h":{"identitytoken":"t"}},"credHelpers":{"h":"x"},"credsStore":"s"}`,
		`{"h":{"auth":"dTpw"}}`,
	} {
		f.Add([]byte(seed), "r.example/a/b:1")
	}
	f.Fuzz(func(t *testing.T, data []byte, s string) {
		a, err := ParseAuth(data)
		if err != nil {
			return
		}
		for key, c := range a.byName {
			again, err := authKey(key)
			if err != nil || again != key || c.user == "" || c.password == "" {
				t.Fatalf("key %q is %q, %v", key, again, err)
			}
		}
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		key, c := a.lookup(ref)
		if name := hubName(ref.Host) + "/" + ref.Repository + "/"; c.user != "" && !strings.HasPrefix(name, key+"/") {
			t.Fatalf("%s gets the credentials of %s", ref, key)
		}
	})
}
