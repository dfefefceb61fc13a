// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import "net/http"

// bySize gets large blobs over HTTP/1.1. HTTP/2 would keep up to 4 MiB of each in memory, of which garbage collection makes
// a multiple, and takes a tenth more processor time for the whole pull; what it is good for is many small answers.
type bySize struct{ small, large http.RoundTripper }

// newBySize returns what makes requests with two transports that are alike.
func newBySize(small, large *http.Transport) bySize {
	large.ForceAttemptHTTP2 = false
	large.Protocols = new(http.Protocols)
	large.Protocols.SetHTTP1(true)
	return bySize{small, large}
}

// RoundTrip implements http.RoundTripper. Only where a large blob is asked for may the answer be so large.
func (b bySize) RoundTrip(req *http.Request) (*http.Response, error) {
	if limit, ok := req.Context().Value(limitKey{}).(int64); ok && limit > MaxManifestSize {
		return b.large.RoundTrip(req)
	}
	return b.small.RoundTrip(req)
}

// CloseIdleConnections lets an http.Client close what it keeps open.
func (b bySize) CloseIdleConnections() {
	for _, rt := range []http.RoundTripper{b.small, b.large} {
		if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
	}
}
