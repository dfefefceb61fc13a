// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tokenWorld is a registry that wants tokens and a token service, without a network. Its functions may be called from
// many goroutines.
type tokenWorld struct {
	// answer answers the nth request for a token, the first is 1. An error is one of the transport.
	answer func(w http.ResponseWriter, req *http.Request, n int) error
	// takes tells whether a token will do. nil takes all that are of the form t1, t2...
	takes func(token string) bool
	// service and scope go into the challenge, and path into its realm.
	service, scope, path string
	// mute makes the registry refuse tokens without a challenge.
	mute bool

	mu            sync.Mutex
	tokens, asked int // requests for tokens, others
}

func (s *tokenWorld) RoundTrip(req *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	if err := s.serve(w, req); err != nil {
		return nil, err
	}
	resp := w.Result()
	resp.Request = req
	return resp, nil
}

func (s *tokenWorld) serve(w http.ResponseWriter, req *http.Request) error {
	s.mu.Lock()
	isToken := strings.HasPrefix(req.URL.Path, "/token")
	if isToken {
		s.tokens++
	} else {
		s.asked++
	}
	n := s.tokens
	s.mu.Unlock()
	if isToken {
		return s.answer(w, req, n)
	}
	token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if !ok || s.takes != nil && !s.takes(token) {
		if !ok || !s.mute {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://r.example/token%s",service=%q,scope=%q`, s.path, "s"+s.service, s.scope))
		}
		w.WriteHeader(http.StatusUnauthorized)
		return nil
	}
	answerManifest(w, req)
	return nil
}

// counts returns and resets what was asked.
func (s *tokenWorld) counts() (tokens, asked int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tokens, asked = s.tokens, s.asked
	s.tokens, s.asked = 0, 0
	return tokens, asked
}

func (s *tokenWorld) client() *Client {
	return newClientWith(Config{Retry: Retry{Attempts: 2}}, strict{next: s})
}

// give answers with the token t1, t2... and more JSON.
func give(more string) func(http.ResponseWriter, *http.Request, int) error {
	return func(w http.ResponseWriter, _ *http.Request, n int) error {
		_, err := fmt.Fprintf(w, `{"token":"t%d"%s}`, n, more)
		return err
	}
}

// Threat: one bad answer of the token service, which the host can bring about, ends all pulls until the guest ends. Seen:
// the service is asked again by the next attempt, and by the next pull.
func TestTokenServiceRecovers(t *testing.T) {
	status := func(code int) func(w http.ResponseWriter) {
		return func(w http.ResponseWriter) { w.WriteHeader(code) }
	}
	body := func(s string) func(w http.ResponseWriter) {
		return func(w http.ResponseWriter) { _, _ = w.Write([]byte(s)) }
	}
	for name, tt := range map[string]struct {
		bad   func(w http.ResponseWriter)
		again bool   // within the same pull
		want  string // in the error
	}{
		"503":               {status(503), true, "503"},
		"429":               {status(429), true, "429"},
		"404":               {status(404), false, "404"},
		"403":               {status(403), false, "check the credentials"},
		"not JSON":          {body("x"), false, "unable to decode token response"},
		"no token":          {body("{}"), false, "did not include a token"},
		"a line end":        {body(`{"token":"a\r\nX: y"}`), false, "invalid header field value"},
		"a space":           {body(`{"token":"a b"}`), false, "invalid header field value"},
		"too large":         {body(`{"token":"` + strings.Repeat("x", maxToken+1) + `"}`), false, "token is larger than"},
		"an answer too big": {body(`{"x":"` + strings.Repeat("x", maxTokenAnswer) + `","token":"t"}`), false, "larger than it may be"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				failures := 1
				s := &tokenWorld{}
				s.answer = func(w http.ResponseWriter, req *http.Request, n int) error {
					if n <= failures {
						tt.bad(w)
						return nil
					}
					return give("")(w, req, n)
				}
				c := s.client()
				defer c.Close()
				ref := parse(t, "r.example/a/b:1")
				_, err := c.Resolve(t.Context(), ref)
				if tt.again && err != nil || !tt.again && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Fatalf("after one bad answer: %v", err)
				}
				s.counts()
				c.grants = grants{}
				failures = 2
				for range 2 {
					if _, err = c.Resolve(t.Context(), ref); err == nil || !strings.Contains(err.Error(), tt.want) {
						t.Fatalf("error %v, want %q", err, tt.want)
					}
					if tt.again {
						break // that were two attempts
					}
				}
				if _, err := c.Resolve(t.Context(), ref); err != nil {
					t.Errorf("when the token service is well again: %v", err)
				}
				if tokens, _ := s.counts(); tokens != 3 {
					t.Errorf("%d requests for tokens, want 3", tokens)
				}
			})
		})
	}
}

// Whoever ends his pull, or whose token does not come, ends no other pull: neither a later one, nor one that needs the
// same token at the same time.
func TestTokenOfOneCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tokenWorld{}
		s.answer = func(w http.ResponseWriter, req *http.Request, n int) error {
			if n == 1 {
				<-req.Context().Done()
				return context.Cause(req.Context())
			}
			return give("")(w, req, n)
		}
		c := s.client()
		defer c.Close()
		ref := parse(t, "r.example/a/b:1")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		first := make(chan error, 1)
		go func() {
			_, err := c.Resolve(ctx, ref)
			first <- err
		}()
		synctest.Wait() // the first one waits for its token
		if _, err := c.Resolve(t.Context(), ref); err != nil {
			t.Errorf("beside one that waits: %v", err)
		}
		if ctx.Err() != nil {
			t.Error("the second one waited for the first one's token")
		}
		if err := <-first; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the first one: %v", err)
		}
		if _, err := c.Resolve(t.Context(), ref); err != nil {
			t.Errorf("after one that was ended: %v", err)
		}
	})
}

func TestTokenLifetime(t *testing.T) {
	for more, want := range map[string]time.Duration{
		"": time.Minute, `,"expires_in":0`: time.Minute, `,"expires_in":-300`: time.Minute, `,"expires_in":300`: 5 * time.Minute,
		`,"expires_in":9223372036854775807`: 24 * time.Hour, `,"issued_at":"2006-01-02T15:04:05Z","expires_in":90`: 90 * time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &tokenWorld{answer: give(more)}
			c := s.client()
			defer c.Close()
			for i, step := range []struct {
				pause         time.Duration
				tokens, asked int
			}{{0, 1, 2}, {want - time.Second, 0, 1}, {2 * time.Second, 1, 1}} {
				time.Sleep(step.pause)
				if _, err := c.Resolve(t.Context(), parse(t, "r.example/a/b:1")); err != nil {
					t.Fatal(err)
				}
				if tokens, asked := s.counts(); tokens != step.tokens || asked != step.asked {
					t.Errorf("%q, step %d: %d requests for tokens and %d others, want %d and %d", more, i, tokens, asked, step.tokens, step.asked)
				}
			}
		})
	}
}

// A registry may take back a token before its time, and says no more than 401 then.
func TestTokenIsTakenBack(t *testing.T) {
	valid := "t1"
	s := &tokenWorld{takes: func(token string) bool { return token == valid }}
	issued := 0
	s.answer = func(w http.ResponseWriter, req *http.Request, _ int) error {
		issued++
		return give("")(w, req, issued)
	}
	c := s.client()
	defer c.Close()
	ref := parse(t, "r.example/a/b:1")
	for _, step := range []struct {
		valid         string
		tokens, asked int
		fails         bool
	}{
		{"t1", 1, 2, false},
		{"t1", 0, 1, false},
		{"t2", 1, 2, false},
		{"t2", 0, 1, false},
		{"none", 1, 2, true}, // with the old token, and with a new one
		{"none", 1, 2, true}, // without, and with a new one
		{"t5", 1, 2, false},
	} {
		valid = step.valid
		if _, err := c.Resolve(t.Context(), ref); (err != nil) != step.fails || err != nil && !errors.Is(err, ErrUnauthorized) {
			t.Fatalf("%s: %v", step.valid, err)
		}
		if tokens, asked := s.counts(); tokens != step.tokens || asked != step.asked {
			t.Errorf("%s: %d requests for tokens and %d others, want %d and %d", step.valid, tokens, asked, step.tokens, step.asked)
		}
	}
}

// A registry that refuses an old token without a challenge gives one to who has none.
func TestTokenIsRefusedWithoutChallenge(t *testing.T) {
	valid := "t1"
	s := &tokenWorld{mute: true, takes: func(token string) bool { return token == valid }}
	s.answer = func(w http.ResponseWriter, _ *http.Request, _ int) error {
		_, err := fmt.Fprintf(w, `{"token":%q}`, valid)
		return err
	}
	c := s.client()
	defer c.Close()
	for i, fails := range []bool{false, true, false} {
		if i == 1 {
			valid = "t2"
		}
		if _, err := c.Resolve(t.Context(), parse(t, "r.example/a:1")); (err != nil) != fails {
			t.Errorf("pull %d: %v", i, err)
		}
	}
}

// A token service that is gone is not asked for ever: the registry says where the next one is.
func TestTokenServiceMoves(t *testing.T) {
	s := &tokenWorld{path: "/old"}
	s.answer = func(w http.ResponseWriter, req *http.Request, n int) error {
		if req.URL.Path == "/token/old" {
			w.WriteHeader(http.StatusNotFound)
			return nil
		}
		return give("")(w, req, n)
	}
	c := s.client()
	defer c.Close()
	ref := parse(t, "r.example/a:1")
	if _, err := c.Resolve(t.Context(), ref); err == nil {
		t.Fatal("a token came from nowhere")
	}
	s.path = "/new"
	if _, err := c.Resolve(t.Context(), ref); err != nil {
		t.Errorf("after the token service has moved: %v", err)
	}
}

// A token is for what the registry asks for and for the repository, and not for those that were pulled before.
func TestTokenScopes(t *testing.T) {
	var scopes []string
	s := &tokenWorld{answer: func(w http.ResponseWriter, req *http.Request, n int) error {
		scopes = req.URL.Query()["scope"]
		return give("")(w, req, n)
	}}
	c := s.client()
	defer c.Close()
	for _, tt := range []struct {
		repository, scope string
		want              []string
	}{
		{"a", "extra:a:b more:x:y", []string{"extra:a:b", "more:x:y", "repository:a:pull"}},
		{"b", "repository:b:pull", []string{"repository:b:pull"}},
	} {
		s.scope = tt.scope
		if _, err := c.Resolve(t.Context(), parse(t, "r.example/"+tt.repository+":1")); err != nil || !slices.Equal(scopes, tt.want) {
			t.Errorf("%s: scopes %q, %v; want %q", tt.repository, scopes, err, tt.want)
		}
	}
}

// What is kept is bounded, whatever references come and whatever registries say.
func TestGrantsAreBounded(t *testing.T) {
	s := &tokenWorld{answer: func(w http.ResponseWriter, _ *http.Request, _ int) error {
		_, err := fmt.Fprintf(w, `{"token":%q}`, strings.Repeat("x", maxToken))
		return err
	}}
	c := s.client()
	defer c.Close()
	resolve := func(i int) {
		if _, err := c.Resolve(t.Context(), parse(t, fmt.Sprintf("r.example/a%d:1", i))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 * maxGrants {
		resolve(i)
		resolve(0) // stays
		if len(c.grants.byKey) > maxGrants {
			t.Fatalf("%d grants", len(c.grants.byKey))
		}
	}
	if tokens, _ := s.counts(); tokens != 2*maxGrants || len(c.grants.byKey) != maxGrants {
		t.Errorf("%d requests for tokens and %d grants, want %d and %d", tokens, len(c.grants.byKey), 2*maxGrants, maxGrants)
	}
	s.service = strings.Repeat("x", maxChallenge)
	if _, err := c.Resolve(t.Context(), parse(t, "r.example/b:1")); err == nil || !strings.Contains(err.Error(), "challenge is larger") {
		t.Errorf("a challenge that is too large: %v", err)
	}
}
