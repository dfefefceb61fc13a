// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
)

// A registry with an IPv6 address, through all that takes an address: reference, registries.conf, credentials, TLS,
// redirects, tokens.
func TestIPv6(t *testing.T) {
	for _, auth := range []string{"", "basic", "bearer"} {
		t.Run("auth "+auth, func(t *testing.T) {
			r := registrytest.NewIPv6(t)
			r.Auth = auth
			r.Hook = func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.Contains(req.URL.Path, "/blobs/") || req.URL.RawQuery != "" {
					return false
				}
				http.Redirect(w, req, "https://"+req.Host+req.URL.Path+"?again", http.StatusTemporaryRedirect)
				return true
			}
			want, _ := addImage(t, r, "v1", "s390x")
			registries, err := ParseRegistries([]byte("[[registry]]\nprefix = '[2001:db8::1]/x'\nlocation = '"+r.Host()+"/test'"), false)
			if err != nil {
				t.Fatal(err)
			}
			a, err := ParseAuth(r.AuthJSON())
			if err != nil {
				t.Fatal(err)
			}
			c := New(Config{CA: r.CA(), Auth: a, Registries: registries, Retry: Retry{Base: time.Millisecond}})
			defer c.Close()
			for _, name := range []string{r.Reference("v1"), "[2001:db8::1]/x/image:v1", "[2001:db8::1]/x/image@" + want.Digest.String()} {
				ref := parse(t, name)
				desc, err := c.Resolve(t.Context(), ref)
				if err != nil || desc.Digest != want.Digest {
					t.Fatalf("%s: %v, %v", name, desc.Digest, err)
				}
				img, err := c.Image(t.Context(), ref, desc.Digest, "s390x")
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				rc, err := c.Blob(t.Context(), ref, img.Layers[0].Descriptor)
				if err != nil {
					t.Fatal(err)
				}
				data, err := io.ReadAll(rc)
				if err != nil || string(data) != "a layer for s390x" {
					t.Errorf("%s: %q, %v", name, data, err)
				}
				_ = rc.Close()
			}
		})
	}
}

func TestIPv6Errors(t *testing.T) {
	r := registrytest.NewIPv6(t)
	addImage(t, r, "v1", "s390x")
	c := newClient(t, x509.NewCertPool(), nil)
	if _, err := c.Resolve(t.Context(), parse(t, r.Reference("v1"))); !errors.Is(err, ErrUntrusted) {
		t.Errorf("a certificate that is not trusted: %v", err)
	}
	blocked, err := ParseRegistries([]byte("[[registry]]\nlocation = '[::1]'\nblocked = true"), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blocked.Places(parse(t, r.Reference("v1"))); !errors.Is(err, ErrBlocked) {
		t.Errorf("a registry that is blocked on all ports: %v", err)
	}
	for _, conf := range []string{"location = '[::1'", "location = '::1'", "location = '[0:0::1]'", "location = '[::1]:0'", "prefix = '[2001:DB8::1]'\nlocation = 'a.example'"} {
		if _, err := ParseRegistries([]byte("[[registry]]\n"+conf), false); err == nil {
			t.Errorf("%s is taken", conf)
		}
	}
}

func TestNoProxy(t *testing.T) {
	for _, tt := range []struct {
		noProxy, host string
		direct        bool
	}{
		{"", "[2001:db8::1]", false},
		{"", "[2001:db8::1]:5000", false},
		{"", "[::1]:5000", true}, // loopback is never reached through a proxy
		{"", "127.0.0.1:5000", true},
		{"2001:db8::1", "[2001:db8::1]", true},
		{"2001:db8::1", "[2001:db8::1]:5000", true},
		{"2001:db8::1", "[2001:db8::2]", false},
		{"[2001:db8::1]:5000", "[2001:db8::1]:5000", true},
		{"[2001:db8::1]:5000", "[2001:db8::1]:5001", false},
		{"[2001:db8::1]:5000", "[2001:db8::1]", false},
		{"2001:db8::/32, 10.0.0.0/8", "[2001:db8:1::1]:5000", true},
		{"2001:db8::/32, 10.0.0.0/8", "10.1.2.3:5000", true},
		{"2001:db8::/32", "[2001:db9::1]", false},
		{".internal,r.example:5000", "a.internal", true},
		{".internal,r.example:5000", "internal", false},
		{".internal,r.example:5000", "r.example:5000", true},
		{".internal,r.example:5000", "r.example", false},
		{"*", "[2001:db8::1]", true},
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+tt.host+"/v2/", nil)
		u, err := newTransport(nil, "http://[2001:db8::9]:3128", tt.noProxy).Proxy(req)
		if err != nil || (u == nil) != tt.direct {
			t.Errorf("no_proxy %q: %s is reached through %v, %v", tt.noProxy, tt.host, u, err)
		}
	}
}

// The proxy itself has an IPv6 address.
func TestIPv6Proxy(t *testing.T) {
	r := registrytest.NewIPv6(t)
	var asked atomic.Value
	r.Hook = func(w http.ResponseWriter, req *http.Request) bool {
		asked.Store(req.Method + " " + req.Host)
		http.Error(w, "not today", http.StatusForbidden)
		return true
	}
	proxy, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := New(Config{CA: r.CA(), HTTPSProxy: proxy.String(), Retry: Retry{Base: time.Millisecond}})
	defer c.Close()
	if _, err := c.Resolve(t.Context(), parse(t, "[2001:db8::1]:5000/a/b:1")); err == nil {
		t.Error("a refusal of the proxy is no error")
	}
	if got := asked.Load(); got != "CONNECT [2001:db8::1]:5000" {
		t.Errorf("the proxy was asked %v", got)
	}
}
