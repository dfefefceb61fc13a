// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Large blobs come over HTTP/1.1, everything else as the registry likes it best.
func TestProtocolBySize(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	rt := newBySize(newTransport(pool, "", ""), newTransport(pool, "", ""))
	defer rt.CloseIdleConnections()
	for limit, want := range map[int64]string{1: "HTTP/2.0", MaxManifestSize: "HTTP/2.0", MaxManifestSize + 1: "HTTP/1.1"} {
		req, err := http.NewRequestWithContext(withLimit(t.Context(), limit), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(got) != want {
			t.Errorf("limit %d: %q, %v; want %s", limit, got, err, want)
		}
	}
}
