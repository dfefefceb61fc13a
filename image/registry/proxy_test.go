// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// tunnel is a proxy that leads everything to one address, and notes what it was asked for and with which password.
type tunnel struct {
	to   string
	mu   sync.Mutex
	seen []string
}

func (p *tunnel) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	p.mu.Lock()
	p.seen = append(p.seen, req.Method+" "+req.Host+" "+req.Header.Get("Proxy-Authorization"))
	p.mu.Unlock()
	if req.Method != http.MethodConnect {
		answerManifest(w, req)
		return
	}
	there, err := new(net.Dialer).DialContext(req.Context(), "tcp", p.to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(there, here)
		_ = there.Close()
	}()
	_, _ = io.Copy(here, there)
	_ = here.Close()
	<-done
}

func (p *tunnel) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Compact(slices.Clone(p.seen))
}

// Threat: the proxy's password goes to whoever stands in the proxy's place, because one registry's certificate is not to be
// checked. Seen: what a proxy is asked whose certificate is trusted, and one whose is not. The registry's is for another
// host always.
func TestProxyOfInsecureRegistry(t *testing.T) {
	const password = "Basic dXNlcjpzZWNyZXQ="
	for _, tt := range []struct {
		name           string
		tls, trusted   bool // of the proxy
		plain          bool // the registry has no TLS
		listed, direct bool // the registry is insecure, is in NoProxy
		want           []string
		fails          bool
	}{
		{name: "https", tls: true, trusted: true, listed: true, want: []string{"CONNECT registry.example:1 " + password}},
		{name: "https, not trusted", tls: true, listed: true, fails: true},
		{name: "https, not listed", tls: true, trusted: true, fails: true, want: []string{"CONNECT registry.example:1 " + password}},
		{name: "https, registry without TLS", tls: true, trusted: true, plain: true, listed: true, want: []string{"CONNECT registry.example:1 " + password, "HEAD registry.example:1 " + password}},
		{name: "https, not trusted, registry without TLS", tls: true, plain: true, listed: true, fails: true},
		{name: "http", listed: true, want: []string{"CONNECT registry.example:1 " + password}},
		{name: "http, registry without TLS", plain: true, listed: true, want: []string{"CONNECT registry.example:1 " + password, "HEAD registry.example:1 " + password}},
		{name: "direct", tls: true, listed: true, direct: true},
		{name: "direct, registry without TLS", tls: true, plain: true, listed: true, direct: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := httptest.NewTLSServer
			if tt.plain {
				start = httptest.NewServer
			}
			registry := start(http.HandlerFunc(answerManifest))
			defer registry.Close()
			p := &tunnel{to: registry.Listener.Addr().String()}
			start = httptest.NewServer
			if tt.tls {
				start = httptest.NewTLSServer
			}
			proxy := start(p)
			defer proxy.Close()
			through, err := url.Parse(proxy.URL)
			if err != nil {
				t.Fatal(err)
			}
			through.User = url.UserPassword("user", "secret")
			host := "registry.example:1"
			config := Config{HTTPSProxy: through.String(), Retry: Retry{Base: time.Millisecond, Attempts: 2}}
			if tt.direct {
				host = p.to
				config.NoProxy = host
			}
			if tt.trusted {
				config.CA = x509.NewCertPool()
				config.CA.AddCert(proxy.Certificate())
			}
			if tt.listed {
				if config.Registries, err = ParseRegistries([]byte("[[registry]]\nlocation = '"+host+"'\ninsecure = true"), true); err != nil {
					t.Fatal(err)
				}
			}
			c := New(config)
			defer c.Close()
			if _, err := c.Resolve(t.Context(), parse(t, host+"/a/b:1")); (err != nil) != tt.fails || err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("error %v", err)
			}
			if got := p.requests(); !slices.Equal(got, tt.want) {
				t.Errorf("the proxy was asked %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCloseInsecure(t *testing.T) {
	closed := make(chan struct{}, 8)
	s := httptest.NewUnstartedServer(http.HandlerFunc(answerManifest))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- struct{}{}
		}
	}
	s.StartTLS()
	defer s.Close()
	host := s.Listener.Addr().String()
	registries, err := ParseRegistries([]byte("[[registry]]\nlocation = '"+host+"'\ninsecure = true"), true)
	if err != nil {
		t.Fatal(err)
	}
	c := New(Config{Registries: registries})
	if _, err := c.Resolve(t.Context(), parse(t, host+"/a:1")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("the connection to an insecure registry stays open")
	}
}
