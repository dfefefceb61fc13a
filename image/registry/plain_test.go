// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// answerManifest answers as a registry does that is asked which digest a tag has.
func answerManifest(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	w.Header().Set("Docker-Content-Digest", someDigest)
	w.Header().Set("Content-Length", "2")
}

func TestPlainLoopback(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(answerManifest))
	defer server.Close()
	ref := parse(t, strings.TrimPrefix(server.URL, "http://")+"/a/b:1")
	allowed := New(Config{PlainLoopback: true})
	defer allowed.Close()
	if d, err := allowed.Resolve(t.Context(), ref); err != nil || d.Digest != someDigest {
		t.Errorf("a registry on loopback: %v, %v", d, err)
	}
	refused := New(Config{})
	defer refused.Close()
	if _, err := refused.Resolve(t.Context(), ref); err == nil {
		t.Error("a registry without TLS was used")
	}
}

// A registry elsewhere is spoken to with TLS or not at all, also when it answers in plain HTTP.
func TestPlainOnlyOnLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.8.9.1": true, "::1": true, "localhost": true,
		"localhost.example": false, "10.0.2.2": false, "": false, "::ffff:10.0.0.1": false, "127.0.0.1.example": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("%q is loopback: %t, want %t", host, got, want)
		}
	}
	plain := &plainPeer{}
	client := strict{next: plain, plainLoopback: true}
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://registry.example/v2/", nil)
	req.Body = nil
	if resp, err := client.RoundTrip(req); err == nil {
		_ = resp.Body.Close()
		t.Error("a registry that is not on loopback was spoken to without TLS")
	}
	if plain.requests != 1 {
		t.Errorf("%d requests, want 1", plain.requests)
	}
}

// plainPeer answers TLS in plain HTTP.
type plainPeer struct{ requests int }

func (p *plainPeer) RoundTrip(*http.Request) (*http.Response, error) {
	p.requests++
	return nil, tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}
}

func TestProxy(t *testing.T) {
	var asked atomic.Value
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.Host)
		http.Error(w, "not today", http.StatusForbidden)
	}))
	defer proxy.Close()
	through, _ := url.Parse(proxy.URL)
	through.User = url.UserPassword("user", "secret")
	c := New(Config{HTTPSProxy: through.String(), NoProxy: "direct.example", Retry: Retry{Base: time.Millisecond}})
	defer c.Close()
	_, err := c.Resolve(t.Context(), parse(t, "registry.example/a/b:1"))
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
	if got := asked.Load(); got != "CONNECT registry.example:443" {
		t.Errorf("the proxy was asked %v", got)
	}
	direct := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://direct.example/v2/", nil)
	if u, err := newTransport(nil, proxy.URL, "direct.example").Proxy(direct); u != nil || err != nil {
		t.Errorf("what is to be reached without a proxy is reached through %v, %v", u, err)
	}
}
