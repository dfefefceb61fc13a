// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/url"
)

// unverified speaks to hosts whose certificate is not checked. That of a proxy on the way is, as the proxy is another
// party than the registry, and gets a password of its own.
type unverified struct {
	proxy   func(*http.Request) (*url.URL, error)
	direct  *http.Transport // without proxy
	proxied *http.Transport // with proxy only
}

// newUnverified returns what checks the certificate of a proxy against pool, and no other.
func newUnverified(pool *x509.CertPool, proxy, noProxy string) unverified {
	u := unverified{proxy: proxyFunc(proxy, noProxy), direct: newTransport(pool, "", ""), proxied: newTransport(pool, proxy, noProxy)}
	// net/http has one TLSClientConfig for proxy and host, but dials TLS itself only after CONNECT if there is a dialer: what
	// this one dials is the first hop.
	d := &tls.Dialer{NetDialer: newDialer(), Config: u.proxied.TLSClientConfig.Clone()}
	u.proxied.DialTLSContext = d.DialContext
	u.proxied.TLSClientConfig.InsecureSkipVerify = true
	u.direct.TLSClientConfig.InsecureSkipVerify = true
	u.direct.Proxy = nil
	return u
}

// RoundTrip implements http.RoundTripper.
func (u unverified) RoundTrip(req *http.Request) (*http.Response, error) {
	through, err := u.proxy(req)
	if err != nil {
		return nil, err
	}
	if through == nil {
		return u.direct.RoundTrip(req)
	}
	return u.proxied.RoundTrip(req)
}

// CloseIdleConnections lets an http.Client close what it keeps open.
func (u unverified) CloseIdleConnections() {
	u.direct.CloseIdleConnections()
	u.proxied.CloseIdleConnections()
}
