// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// replies answers requests with raw answers, one after the other and the last one from then on.
type replies struct {
	raw []string
	n   int
}

func (r *replies) RoundTrip(req *http.Request) (*http.Response, error) {
	raw := r.raw[min(r.n, len(r.raw)-1)]
	r.n++
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(raw)), req)
	if err == nil && resp.Body == nil {
		resp.Body = http.NoBody
	}
	return resp, err
}

// FuzzAnswers is a registry that says anything: there is an end, and an error that can be shown, or what was asked for.
func FuzzAnswers(f *testing.F) {
	const (
		separator = "\n--\n"
		hello     = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
		basic     = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\n\r\n"
		bearer    = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"https://a.example/t?x=y\",service=s,scope=\"a b\",error=\"e\"\r\n\r\n"
		token     = "HTTP/1.1 200 OK\r\n\r\n{\"token\":\"t\",\"access_token\":\"t\",\"expires_in\":-1,\"issued_at\":\"2006-01-02T15:04:05Z\"}"
		tag       = "HTTP/1.1 200 OK\r\nDocker-Content-Digest: " + someDigest + "\r\nContent-Type: text/plain;x\r\nContent-Length: 5\r\n\r\n"
	)
	for _, seed := range [][]string{
		{hello},
		{basic, hello},
		{bearer, token, hello},
		{bearer},
		{basic},
		{tag},
		{"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 3\r\n\r\nhel", "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 3-4/5\r\n\r\nlo"},
		{"HTTP/1.1 503 x\x1b\r\nRetry-After: 9999999999\r\n\r\n", hello},
		{"HTTP/1.1 307 x\r\nLocation: //b.example/%zz\r\n\r\n"},
		{"HTTP/1.1 302 x\r\nLocation: file:///x\r\n\r\n"},
		{"HTTP/1.1 418 x\r\n\r\n{\"errors\":[{\"code\":\"UNKNOWN\",\"message\":\"\\n\\u001b\",\"detail\":{}}]}"},
		{"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx"},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"},
		{"HTTP/1.1 416 x\r\n\r\n"},
		{"HTTP/1.1 405 x\r\n\r\n", hello},
	} {
		f.Add(strings.Join(seed, separator))
	}
	auth, err := ParseAuth(authJSON(f, map[string]string{"r.example": "u"}))
	if err != nil {
		f.Fatal(err)
	}
	ref := Reference{Host: "r.example", Repository: "a/b", Tag: "1"}
	hash := digest.FromString("hello")
	f.Fuzz(func(t *testing.T, s string) {
		for name, ask := range map[string]func(c *Client) ([]byte, error){
			"Resolve":  func(c *Client) ([]byte, error) { _, err := c.Resolve(t.Context(), ref); return nil, err },
			"Manifest": func(c *Client) ([]byte, error) { return c.Manifest(t.Context(), ref, hash) },
			"Get": func(c *Client) ([]byte, error) {
				_, err := c.Get(t.Context(), "https://s.example/x", 100)
				return nil, err
			},
			"Blob": func(c *Client) ([]byte, error) {
				rc, err := c.Blob(t.Context(), ref, ocispec.Descriptor{Digest: hash, Size: 5})
				if err != nil {
					return nil, err
				}
				defer rc.Close()
				return io.ReadAll(rc)
			},
		} {
			r := &replies{raw: strings.Split(s, separator)}
			c := newClientWith(Config{Auth: auth, Retry: Retry{Attempts: 2, Base: 1, Max: 1, Stall: time.Minute}}, strict{next: r})
			data, err := ask(c)
			c.Close()
			if err == nil && (name == "Manifest" || name == "Blob") && string(data) != "hello" {
				t.Fatalf("%s: %q", name, data)
			}
			if r.n > 100 {
				t.Fatalf("%s: %d requests", name, r.n)
			}
			if err != nil && (len(err.Error()) > 4<<10 || strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) })) {
				t.Fatalf("%s: an error that cannot be shown: %q", name, err)
			}
		}
	})
}
