// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A store of signatures: what each answer becomes, and how often it is asked.
func TestGet(t *testing.T) {
	data := blobOf(3000)
	for _, tt := range []struct {
		name     string
		answers  []answer
		limit    int64
		want     string // "": success
		is       error
		requests int
	}{
		{name: "all of it", answers: []answer{{send: -1}}, limit: 3000, requests: 1},
		{name: "larger than the limit", answers: []answer{{send: -1}}, limit: 2999, want: "larger than it may be", requests: 1},
		{name: "404", answers: []answer{{status: 404}}, limit: 3000, want: "not found", is: ErrNotFound, requests: 1},
		{name: "410", answers: []answer{{status: 410}}, limit: 3000, want: "not found", is: ErrNotFound, requests: 1},
		{name: "403 is no 404", answers: []answer{{status: 403}}, limit: 3000, want: "answer is 403 Forbidden", requests: 1},
		{name: "401", answers: []answer{{status: 401}}, limit: 3000, want: "answer is 401", requests: 1},
		{name: "nothing but a status", answers: []answer{{status: 304}}, limit: 3000, want: "answer is 304", requests: 1},
		{name: "503 once", answers: []answer{{status: 503}, {send: -1}}, limit: 3000, requests: 2},
		{name: "503", answers: []answer{{status: 503}}, limit: 3000, want: "gave up after 6 attempts", requests: 6},
		{name: "dropped once", answers: []answer{{send: 10, then: io.ErrUnexpectedEOF}, {send: -1}}, limit: 3000, requests: 2},
		{name: "silence", answers: []answer{{then: errSilence}}, limit: 3000, want: "sends nothing", is: ErrStalled, requests: 6},
		{name: "trickle", answers: []answer{{send: -1, slow: true}, {send: -1}}, limit: 3000, requests: 2},
		{name: "negative limit", limit: -1, want: "a limit of -1 bytes"},
		{name: "limit without bounds", limit: MaxManifestSize + 1, want: "is not between"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{data: data, answers: tt.answers}
				c := newClientWith(Config{}, strict{next: s})
				defer c.Close()
				got, err := getAll(t, c, "https://signatures.example/store/a@sha256=0/signature-1", tt.limit)
				if tt.want == "" && (err != nil || string(got) != string(data)) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("%d bytes, %v; want %q", len(got), err, tt.want)
				}
				if tt.is == nil && errors.Is(err, ErrNotFound) || tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("error %v, want %v", err, tt.is)
				}
				if len(s.hosts) != tt.requests {
					t.Errorf("%d requests, want %d", len(s.hosts), tt.requests)
				}
			})
		})
	}
}

func getAll(t *testing.T, c *Client, url string, limit int64) ([]byte, error) {
	t.Helper()
	rc, err := c.Get(t.Context(), url, limit)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func TestGetURLs(t *testing.T) {
	s := &script{answers: []answer{{send: -1}}}
	c := newClientWith(Config{}, strict{next: s})
	defer c.Close()
	for _, url := range []string{
		"http://a.example/x", "file:///etc/passwd", "a.example/x", "https:///x", "https:a.example/x", "", "https://user:hunter2@a.example/x",
		"https://user:hunter2@a.example/%zz", "HTTPS://", "https://:443/x",
	} {
		_, err := c.Get(t.Context(), url, 100)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", url, err)
		}
	}
	if len(s.hosts) != 0 {
		t.Errorf("asked %q", s.hosts)
	}
}

// The store's host is also a registry whose credentials the guest has. It asks for them, redirects, and gets nothing.
func TestGetSendsNoCredentials(t *testing.T) {
	var seen []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		seen = append(seen, req.URL.Path+" "+req.Header.Get("Authorization")+req.Header.Get("Cookie")+" "+req.UserAgent())
		switch req.URL.Path {
		case "/moved":
			http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
			http.Redirect(w, req, "/there", http.StatusFound)
		case "/there":
			_, _ = io.WriteString(w, "signature")
		case "/plain":
			http.Redirect(w, req, "http://"+req.Host+"/there", http.StatusFound)
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer server.Close()
	host := server.Listener.Addr().String()
	auth, err := ParseAuth([]byte(`{"auths":{"` + host + `":{"auth":"dTpw"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	c := New(Config{CA: pool, Auth: auth, UserAgent: "test", Retry: Retry{Base: time.Millisecond}})
	defer c.Close()
	if got, err := getAll(t, c, server.URL+"/moved", 100); err != nil || string(got) != "signature" {
		t.Errorf("%q, %v", got, err)
	}
	for path, want := range map[string]string{"/private": "answer is 401", "/plain": "only https is allowed"} {
		if _, err := getAll(t, c, server.URL+path, 100); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if len(seen) != 4 {
		t.Errorf("requests %q", seen)
	}
	for _, s := range seen {
		if !strings.HasSuffix(s, "  test") {
			t.Errorf("request %q", s)
		}
	}
	none := New(Config{Retry: Retry{Base: time.Millisecond}})
	defer none.Close()
	if _, err := getAll(t, none, server.URL+"/there", 100); !errors.Is(err, ErrUntrusted) {
		t.Errorf("a certificate that is not trusted: %v", err)
	}
}
