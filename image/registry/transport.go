// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/net/http/httpproxy"
)

// dockerHubHost is where docker.io's registry really is.
const dockerHubHost = "registry-1.docker.io"

// Limits on connections.
const (
	maxRedirects     = 5
	maxHeaderBytes   = 256 << 10
	dialTimeout      = 30 * time.Second
	handshakeTimeout = 30 * time.Second
	headerTimeout    = 2 * time.Minute
	idleTimeout      = 30 * time.Second
)

// newTransport returns a transport that knows no certificate but those of pool, and no proxy but that one.
func newTransport(pool *x509.CertPool, proxy, noProxy string) *http.Transport {
	if pool == nil {
		pool = x509.NewCertPool() // a nil RootCAs would mean the system's pool
	}
	return &http.Transport{
		Proxy:                  proxyFunc(proxy, noProxy),
		DialContext:            newDialer().DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    handshakeTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConnsPerHost:    4,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
	}
}

func newDialer() *net.Dialer { return &net.Dialer{Timeout: dialTimeout} }

// proxyFunc returns the proxy of a request. Plain HTTP, where it is allowed, goes through it too: whoever sets a proxy wants
// nothing to go past it.
func proxyFunc(proxy, noProxy string) func(*http.Request) (*url.URL, error) {
	through := (&httpproxy.Config{HTTPProxy: proxy, HTTPSProxy: proxy, NoProxy: noProxy}).ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return through(r.URL) }
}

// acceptManifests lists all that a reference can stand for.
var acceptManifests = strings.Join([]string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, mediaTypeDockerManifest, mediaTypeDockerList,
}, ", ")

// strict is the one place that every request passes: the registry's own, redirects, and requests for tokens.
type strict struct {
	next          http.RoundTripper
	plainLoopback bool
	// insecure are the hosts, with their ports, that unverified may be used for, or plain HTTP.
	insecure   map[string]bool
	unverified http.RoundTripper
}

// limitKey is the context key of the largest response body in bytes.
type limitKey struct{}

// withLimit bounds the body of every response to requests of ctx. A body that is larger fails when it is read.
func withLimit(ctx context.Context, limit int64) context.Context {
	return context.WithValue(ctx, limitKey{}, limit)
}

// RoundTrip implements http.RoundTripper.
func (s strict) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		return nil, fmt.Errorf("registry leads to %.100q: only https is allowed", req.URL.Redacted())
	}
	ctx := req.Context()
	req = req.Clone(ctx)
	// A digest is that of the bytes on the wire, and a content encoding would be unpacked without any limit.
	req.Header.Set("Accept-Encoding", "identity")
	if req.Method != http.MethodPut && strings.Contains(req.URL.Path, "/manifests/") {
		// What a digest stands for is not known before it is here, and registries hide what is not asked for by its type.
		req.Header.Set("Accept", acceptManifests)
	}
	resp, err := s.send(req)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &droppedError{err} // before any answer
		}
		return nil, dropped(ctx.Err(), err)
	}
	if err := checkAnswer(req, resp); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	limit, ok := ctx.Value(limitKey{}).(int64)
	if !ok {
		limit = MaxManifestSize
	}
	if req.Method == http.MethodHead && resp.ContentLength > limit && strings.Contains(req.URL.Path, "/manifests/") {
		_ = resp.Body.Close()
		return nil, errTooLarge // containerd would call it one that is not there
	}
	resp.Body = &limitedBody{ReadCloser: resp.Body, left: limit, watch: watchOf(ctx), ended: ctx.Err}
	return resp, nil
}

// send sends a request by the way that its host asks for.
func (s strict) send(req *http.Request) (*http.Response, error) {
	next, insecure := s.next, s.insecure[req.URL.Host]
	if insecure {
		next = s.unverified
	}
	resp, err := next.RoundTrip(req)
	_, plain := errors.AsType[tls.RecordHeaderError](err)
	if plain && (insecure || s.plainLoopback && isLoopback(req.URL.Hostname())) && req.Body == nil {
		req.URL.Scheme = "http" // the request is a clone
		resp, err = s.next.RoundTrip(req)
	}
	return resp, err
}

// checkAnswer refuses answers that a client would make the wrong thing of.
func checkAnswer(req *http.Request, resp *http.Response) error {
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("registry answers with content encoding %.40q that was not asked for", e)
	}
	if asked := req.Header.Get("Range"); asked != "" && resp.StatusCode == http.StatusPartialContent {
		from := strings.TrimSuffix(strings.TrimPrefix(asked, "bytes="), "-")
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, "bytes "+from+"-") {
			return fmt.Errorf("registry answers with %.60q to a request for bytes from %s on: %w", got, from, ErrDigest)
		}
	}
	if watchOf(req.Context()) == nil {
		return nil // nobody would try again
	}
	return passing(resp)
}

// isLoopback tells whether a host is this machine whatever a name server says.
func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// CloseIdleConnections lets an http.Client close what it keeps open.
func (s strict) CloseIdleConnections() {
	for _, rt := range []http.RoundTripper{s.next, s.unverified} {
		if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
	}
}

// limitedBody fails, rather than ends, after left bytes. What comes is reported to watch.
type limitedBody struct {
	io.ReadCloser
	left  int64
	watch *watch       // may be nil
	ended func() error // tells whether the request is over
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if n > 0 && b.watch != nil {
		b.watch.came(n)
	}
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLarge
	}
	if err != nil {
		err = dropped(b.ended(), err)
	}
	return n, err
}

var errTooLarge = errors.New("registry's answer is larger than it may be")

// newHTTPClient returns the client of every request.
func newHTTPClient(rt http.RoundTripper) *http.Client {
	return &http.Client{Transport: rt, CheckRedirect: checkRedirect}
}

// checkRedirect decides whether a redirect is followed. Credentials stay with the host and port that they were for;
// net/http would take them along to other ports, and to hosts below the first.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if req.URL.Scheme != "https" {
		return fmt.Errorf("registry redirects to %.100q: only https is allowed", req.URL.Redacted())
	}
	if first := via[0]; req.URL.Host != first.URL.Host {
		req.Header.Del("Authorization")
		if req.Body != nil && strings.HasPrefix(first.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
			return fmt.Errorf("registry redirects a request for a token, with credentials in it, to %.100q", req.URL.Host)
		}
	}
	return nil
}
