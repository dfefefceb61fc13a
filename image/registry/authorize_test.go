// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// witness is a server that notes who showed which credentials where.
type witness struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string // "METHOD path user"; a token counts as its user
}

// newWitness answers with f, which gets the user of a request.
func newWitness(t *testing.T, f func(w http.ResponseWriter, req *http.Request, user string)) *witness {
	t.Helper()
	s := new(witness)
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, _, basic := req.BasicAuth()
		if basic && user == "" {
			user = "nobody"
		}
		if token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer "); ok {
			user = token
		}
		if err := req.ParseForm(); err == nil && req.Method == http.MethodPost {
			user = req.PostForm.Get("username")
		}
		s.mu.Lock()
		s.seen = append(s.seen, strings.TrimSpace(req.Method+" "+req.URL.Path+" "+user))
		s.mu.Unlock()
		f(w, req, user)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *witness) host() string { return s.Listener.Addr().String() }

// requests returns what was seen since the last call, without repetitions.
func (s *witness) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	slices.Sort(seen)
	return slices.Compact(seen)
}

// clientWith trusts the servers of httptest, which have one certificate, and has these users.
func clientWith(t *testing.T, any *witness, users map[string]string, registries *Registries) *Client {
	t.Helper()
	a, err := ParseAuth(authJSON(t, users))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(any.Certificate())
	c := New(Config{CA: pool, Auth: a, Registries: registries, Retry: Retry{Base: time.Millisecond, Attempts: 2}})
	t.Cleanup(c.Close)
	return c
}

// token answers a request for a token with the user's name as the token.
func token(w http.ResponseWriter, user string) {
	_, _ = fmt.Fprintf(w, `{"token":%q,"access_token":%q}`, user, user)
}

// challenge asks for credentials; realm "" means Basic.
func challenge(w http.ResponseWriter, realm string) {
	c := `Basic realm="test"`
	if realm != "" {
		c = fmt.Sprintf(`Bearer realm=%q,service="test"`, realm)
	}
	w.Header().Set("WWW-Authenticate", c)
	w.WriteHeader(http.StatusUnauthorized)
}

// Threat: the registry hosts many teams, and sees, or logs, the password of one where another's image is pulled. Seen:
// each repository's requests, also those for tokens, show its own credentials or none.
func TestCredentialsOfRepositories(t *testing.T) {
	for _, scheme := range []string{"basic", "bearer"} {
		t.Run(scheme, func(t *testing.T) {
			var s *witness
			s = newWitness(t, func(w http.ResponseWriter, req *http.Request, user string) {
				switch {
				case req.URL.Path == "/token" && req.Method == http.MethodPost && user == "b":
					w.WriteHeader(http.StatusNotFound) // asks by GET then
				case req.URL.Path == "/token":
					token(w, user)
				case user == "" && scheme == "bearer":
					challenge(w, s.URL+"/token")
				case user == "" || user == "nobody":
					challenge(w, "")
				default:
					answerManifest(w, req)
				}
			})
			h := s.host()
			c := clientWith(t, s, map[string]string{h + "/team": "t", h + "/team/a": "a", h + "/team/b": "b", "other.example": "x", "other.example/team/a": "y"}, nil)
			for round := range 2 { // with what the first round has left, too
				for repository, user := range map[string]string{"team/a": "a", "team/b": "b", "team/a/deep": "a", "team/c": "t", "team/ab": "t"} {
					if _, err := c.Resolve(t.Context(), parse(t, h+"/"+repository+":1")); err != nil {
						t.Fatalf("%s: %v", repository, err)
					}
					requests := s.requests()
					if round > 0 && len(requests) != 1 {
						t.Errorf("%s: requests %q: nothing was kept", repository, requests)
					}
					for _, r := range requests {
						f := strings.Fields(r)
						if len(f) == 3 && f[2] != user || len(f) == 2 && f[1] == "/token" {
							t.Errorf("%s: request %q, want the user %s", repository, r, user)
						}
					}
				}
			}
			_, err := c.Resolve(t.Context(), parse(t, h+"/stranger:1"))
			if scheme == "basic" && !errors.Is(err, ErrUnauthorized) {
				t.Errorf("a repository without credentials: %v", err)
			}
			for _, r := range s.requests() {
				if len(strings.Fields(r)) != 2 {
					t.Errorf("a repository without credentials: request %q", r)
				}
			}
		})
	}
}

// What goes to a mirror is the mirror's, whatever the image is called.
func TestCredentialsOfMirrors(t *testing.T) {
	ask := func(w http.ResponseWriter, req *http.Request, user string) {
		if user == "" {
			challenge(w, "")
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}
	mirror, own, anonymous := newWitness(t, ask), newWitness(t, ask), newWitness(t, ask)
	conf := fmt.Sprintf("[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\n",
		own.host()+"/a", mirror.host()+"/copy/of", anonymous.host())
	registries, err := ParseRegistries([]byte(conf), false)
	if err != nil {
		t.Fatal(err)
	}
	c := clientWith(t, own, map[string]string{own.host(): "own", own.host() + "/a/b": "ab", mirror.host() + "/copy": "copy", mirror.host() + "/a/b": "wrong"}, registries)
	if _, err := c.Resolve(t.Context(), parse(t, own.host()+"/a/b:1")); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v", err)
	}
	for _, tt := range []struct {
		s    *witness
		want []string
	}{
		{mirror, []string{"HEAD /v2/copy/of/b/manifests/1", "HEAD /v2/copy/of/b/manifests/1 copy"}},
		{own, []string{"HEAD /v2/a/b/manifests/1", "HEAD /v2/a/b/manifests/1 ab"}},
		{anonymous, []string{"HEAD /v2/b/manifests/1"}},
	} {
		if got := tt.s.requests(); !slices.Equal(got, tt.want) {
			t.Errorf("requests %q, want %q", got, tt.want)
		}
	}
}

// Threat: a registry leads the guest to somebody else's host, port or token service, which then gets the credentials of
// this one, or of that one. Seen: what the other host gets.
func TestCredentialsAndRedirects(t *testing.T) {
	data := []byte("blob")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	serve := func(w http.ResponseWriter, _ *http.Request, _ string) { _, _ = w.Write(data) }
	for _, tt := range []struct {
		name  string
		realm func(registry, elsewhere string) string
		// answer is that of the registry to who has credentials, and that of its token service.
		answer, token func(w http.ResponseWriter, req *http.Request, elsewhere string)
		elsewhere     func(w http.ResponseWriter, req *http.Request, user string)
		want          string   // "": success
		seen          []string // elsewhere
	}{
		{
			name: "another port", elsewhere: serve, seen: []string{"GET /there"},
			answer: func(w http.ResponseWriter, req *http.Request, to string) {
				http.Redirect(w, req, to+"/there", http.StatusTemporaryRedirect)
			},
		},
		{
			name: "another port, with tokens", elsewhere: serve, seen: []string{"GET /there"},
			realm: func(registry, _ string) string { return registry + "/token" },
			answer: func(w http.ResponseWriter, req *http.Request, to string) {
				http.Redirect(w, req, to+"/there", http.StatusTemporaryRedirect)
			},
		},
		{
			name: "who asks for its own credentials", want: "refuses the credentials", seen: []string{"GET /there"},
			answer: func(w http.ResponseWriter, req *http.Request, to string) {
				http.Redirect(w, req, to+"/there", http.StatusFound)
			},
			elsewhere: func(w http.ResponseWriter, _ *http.Request, _ string) { challenge(w, "") },
		},
		{
			name: "who asks for tokens of its own", want: "refuses the credentials", seen: []string{"GET /there"},
			answer: func(w http.ResponseWriter, req *http.Request, to string) {
				http.Redirect(w, req, to+"/there", http.StatusFound)
			},
			elsewhere: func(w http.ResponseWriter, req *http.Request, user string) {
				if req.URL.Path == "/token" {
					token(w, user)
					return
				}
				challenge(w, "https://"+req.Host+"/token")
			},
		},
		{
			name: "there and back", seen: []string{"GET /there"},
			answer: func(w http.ResponseWriter, req *http.Request, to string) {
				if req.URL.RawQuery == "back" {
					_, _ = w.Write(data)
					return
				}
				http.Redirect(w, req, to+"/there?"+req.Host, http.StatusFound)
			},
			elsewhere: func(w http.ResponseWriter, req *http.Request, _ string) {
				http.Redirect(w, req, "https://"+req.URL.RawQuery+"/v2/a/b/blobs/x?back", http.StatusFound)
			},
		},
		{
			name: "token service on another host", seen: []string{"POST /token me"}, // as docker.io has it: this registry's own credentials
			realm:     func(_, elsewhere string) string { return elsewhere + "/token" },
			elsewhere: func(w http.ResponseWriter, _ *http.Request, user string) { token(w, user) },
			answer:    func(w http.ResponseWriter, _ *http.Request, _ string) { _, _ = w.Write(data) },
		},
		{
			name: "token service redirects the password", want: "redirects a request for a token, with credentials in it",
			realm: func(registry, _ string) string { return registry + "/token" },
			token: func(w http.ResponseWriter, req *http.Request, to string) {
				http.Redirect(w, req, to+"/token", http.StatusTemporaryRedirect)
			},
			elsewhere: serve,
		},
		{
			name: "token service redirects a GET", seen: []string{"GET /token"}, want: "",
			realm: func(registry, _ string) string { return registry + "/token" },
			token: func(w http.ResponseWriter, req *http.Request, to string) {
				if req.Method == http.MethodPost {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				http.Redirect(w, req, to+"/token", http.StatusTemporaryRedirect)
			},
			elsewhere: func(w http.ResponseWriter, _ *http.Request, _ string) { token(w, "somebody") },
			answer:    func(w http.ResponseWriter, _ *http.Request, _ string) { _, _ = w.Write(data) },
		},
		{
			name: "token service is a file", want: "only https is allowed",
			realm: func(string, string) string { return "file:///etc/passwd" },
		},
		{
			name: "token service without TLS", want: "only https is allowed",
			realm: func(_, elsewhere string) string { return strings.Replace(elsewhere, "https:", "http:", 1) + "/token" },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var elsewhere, s *witness
			elsewhere = newWitness(t, func(w http.ResponseWriter, req *http.Request, user string) { tt.elsewhere(w, req, user) })
			s = newWitness(t, func(w http.ResponseWriter, req *http.Request, user string) {
				switch {
				case req.URL.Path == "/token" && tt.token != nil:
					tt.token(w, req, elsewhere.URL)
				case req.URL.Path == "/token":
					token(w, user)
				case user != "":
					tt.answer(w, req, elsewhere.URL)
				case tt.realm != nil:
					challenge(w, tt.realm(s.URL, elsewhere.URL))
				default:
					challenge(w, "")
				}
			})
			c := clientWith(t, s, map[string]string{s.host(): "me", elsewhere.host(): "theirs"}, nil)
			rc, err := c.Blob(t.Context(), parse(t, s.host()+"/a/b:1"), desc)
			if err != nil {
				t.Fatal(err)
			}
			defer rc.Close()
			got, err := io.ReadAll(rc)
			if tt.want == "" && (err != nil || string(got) != string(data)) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows a password: %v", err)
			}
			if seen := elsewhere.requests(); !slices.Equal(seen, tt.seen) {
				t.Errorf("elsewhere %q was seen, want %q", seen, tt.seen)
			}
		})
	}
}

// net/http keeps credentials for other ports, and for hosts below the first one.
func TestRedirectedCredentials(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		keeps    bool
		want     string
	}{
		{"https://r.example/a", "https://r.example/b", true, ""},
		{"https://r.example:5000/a", "https://r.example:5000/b", true, ""},
		{"https://r.example/a", "https://sub.r.example/a", false, ""},
		{"https://r.example/a", "https://r.example:5000/a", false, ""},
		{"https://r.example/a", "https://r.example.evil.example/a", false, ""},
		{"https://[2001:db8::1]/a", "https://[2001:db8::2]/a", false, ""},
		{"https://[2001:db8::1]/a", "https://[2001:db8::1]:5000/a", false, ""},
		{"https://r.example/a", "http://r.example/a", false, "only https"},
		{"https://r.example/a", "ftp://r.example/a", false, "only https"},
	} {
		first := httptest.NewRequestWithContext(t.Context(), http.MethodGet, tt.from, nil)
		next := httptest.NewRequestWithContext(t.Context(), http.MethodGet, tt.to, nil)
		next.Header.Set("Authorization", "Basic x")
		err := checkRedirect(next, []*http.Request{first})
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s to %s: %v, want %q", tt.from, tt.to, err, tt.want)
		}
		if keeps := next.Header.Get("Authorization") != ""; err == nil && keeps != tt.keeps {
			t.Errorf("%s to %s: credentials stay: %t", tt.from, tt.to, keeps)
		}
	}
}

// What is kept for a host is for that host, whoever asks.
func TestAuthorizeOtherHost(t *testing.T) {
	c := clientWith(t, newWitness(t, nil), map[string]string{"r.example": "me"}, nil)
	a := c.authorizer(parse(t, "r.example/a:1"))
	c.grants.put(a.grant(t.Context()), grant{basic: true})
	for host, want := range map[string]bool{"r.example": true, "r.example:5000": false, "sub.r.example": false, "other.example": false} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+"/v2/a/manifests/1", nil)
		if err := a.Authorize(t.Context(), req); err != nil || (req.Header.Get("Authorization") != "") != want {
			t.Errorf("%s: %q, %v", host, req.Header.Get("Authorization"), err)
		}
	}
}

// Two repositories never use what is kept for one of them, as they may have other credentials; and whoever comes without
// any a second time, as others took the place of what was kept, is not refused for that.
func TestGrantsOfRepositories(t *testing.T) {
	c := newClientWith(Config{}, strict{})
	a, b := c.authorizer(parse(t, "r.example/a:1")), c.authorizer(parse(t, "r.example/b:1"))
	if a.grant(t.Context()) == b.grant(t.Context()) {
		t.Error("two repositories have one grant")
	}
	if a.grant(docker.WithScope(t.Context(), "repository:a:pull")) == a.grant(docker.WithScope(t.Context(), "repository:a:pull,push")) {
		t.Error("pull and push have one grant")
	}
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://r.example/v2/a/manifests/1", nil)
	refusal := &http.Response{StatusCode: http.StatusUnauthorized, Request: req, Header: http.Header{"Www-Authenticate": {`Bearer realm="https://r.example/token"`}}}
	if err := a.AddResponses(t.Context(), []*http.Response{refusal, refusal}); err != nil {
		t.Error(err)
	}
	req.Header.Set("Authorization", "Bearer x")
	if err := a.AddResponses(t.Context(), []*http.Response{refusal, refusal}); err == nil {
		t.Error("a second refusal is not final")
	}
}
