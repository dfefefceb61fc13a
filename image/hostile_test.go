// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/registry"
)

// hostile is a registry that means ill, and somebody else's that does not.
type hostile struct {
	*registrytest.Registry
	elsewhere *registrytest.Registry
	layers    []built
	limits    Limits
	retry     registry.Retry

	mu     sync.Mutex
	leaked []string // credentials that elsewhere got to see
	n      int      // see nth
}

// row is one thing that a registry may do.
type row struct {
	name string
	// do changes what the registry has or says before an image of its layers is published, unless it says that it has
	// published one.
	do func(t *testing.T, h *hostile) (published bool)
	// want is a part of the error; empty means that the image is mounted and right all the same.
	want string
	is   error
	// most is how many bytes the registry gets rid of, default 16 MiB: 4 MiB is the most that is read without need, and
	// sockets have buffers.
	most int64
	// leak means that somebody else gets the registry's own credentials, as it wants.
	leak bool
	// keeps means that a layer which is right by itself may stay.
	keeps bool
}

// content is what the layer of the tests' image has.
const content = "what is to be in the container"

// TestHostileRegistry says what an image is worth to a container, whatever its registry does: it is mounted if all of it
// is what its digests say, and else there is an error, no mount, no layer, nothing staged, and a bounded number of bytes.
func TestHostileRegistry(t *testing.T) {
	needRoot(t)
	for group, rows := range map[string][]row{
		"answers": hostileAnswers(), "bodies": hostileBodies(), "credentials": hostileCredentials(),
		"manifests": hostileManifests(), "layers": hostileLayers(),
	} {
		for _, tt := range rows {
			t.Run(group+"/"+tt.name, func(t *testing.T) { runHostile(t, registrytest.New(t), tt) })
		}
	}
	for _, tt := range hostileHTTP2() {
		t.Run("HTTP2/"+tt.name, func(t *testing.T) { runHostile(t, registrytest.NewHTTP2(t), tt) })
	}
}

func runHostile(t *testing.T, r *registrytest.Registry, tt row) {
	t.Helper()
	h := &hostile{Registry: r, elsewhere: registrytest.New(t), retry: registry.Retry{Attempts: 2, Base: time.Millisecond, Max: 2 * time.Millisecond}}
	h.Auth = "basic"
	h.elsewhere.Hook = h.bystander
	h.layers = []built{build(t, r, "gzip", tarball(t, map[string]string{"f": content}), nil)}
	h.elsewhere.SetBlob(h.layers[0].desc.Digest, h.layers[0].blob)
	if !tt.do(t, h) {
		addImage(t, r, "v1", h.layers...)
	}
	auth := func(user string) string {
		return base64.StdEncoding.EncodeToString([]byte(user + ":" + registrytest.Password))
	}
	s, m := service(t, r, func(c *Config) {
		c.Limits, c.Retry = h.limits, h.retry
		c.Auth = fmt.Appendf(nil, `{"auths":{%q:{"auth":%q},%q:{"auth":%q}}}`, r.Host(), auth(registrytest.User), h.elsewhere.Host(), auth("other"))
	})
	err := mount(t.Context(), s, "c1", r.Reference("v1"), "/c1")
	layers, staging := stored(t, s)
	if tt.want == "" {
		if err != nil {
			t.Fatal(err)
		}
		if got := m.read(t, "/c1", "f"); got != content || len(layers) == 0 {
			t.Errorf("the container has %q", got)
		}
	} else {
		contains(t, err, tt.want)
		if tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("error %v is not %v", err, tt.is)
		}
		if len(m.targets) != 0 || len(layers) != 0 && !tt.keeps {
			t.Errorf("mounts %v, layers %v", m.targets, layers)
		}
		checkText(t, err)
	}
	if len(staging) != 0 {
		t.Errorf("staged: %v", staging)
	}
	most := tt.most
	if most == 0 {
		most = 16 << 20
	}
	if n := r.Sent() + h.elsewhere.Sent(); n > most {
		t.Errorf("%d bytes were sent, at most %d are of use", n, most)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, seen := range h.leaked {
		if !tt.leak || !strings.Contains(seen, "user") {
			t.Errorf("somebody else got to see %s", seen)
		}
	}
	if tt.leak && len(h.leaked) == 0 {
		t.Error("nobody else was asked for a token")
	}
}

// checkText makes sure that an error can be shown.
func checkText(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := err.Error()
	for _, secret := range []string{registrytest.Password, base64.StdEncoding.EncodeToString([]byte(registrytest.User + ":" + registrytest.Password))} {
		if strings.Contains(text, secret) {
			t.Errorf("the error shows a password: %s", text)
		}
	}
	if len(text) > 4<<10 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' }) {
		t.Errorf("the error has %d bytes, or control characters: %.200q", len(text), text)
	}
}

// bystander is the hook of the registry elsewhere: it gives the layer away to everybody, and notes what it should not get.
func (h *hostile) bystander(w http.ResponseWriter, req *http.Request) bool {
	user, _, _ := req.BasicAuth()
	if req.ParseForm() == nil && req.PostForm.Has("password") {
		user = req.PostForm.Get("username")
	}
	if auth := req.Header.Get("Authorization"); auth != "" || user != "" {
		h.mu.Lock()
		h.leaked = append(h.leaked, auth+" of "+user)
		h.mu.Unlock()
	}
	switch {
	case req.URL.Path == "/token":
		_, _ = w.Write([]byte(`{"token":"of-somebody-else","access_token":"of-somebody-else"}`))
		return true
	case strings.HasPrefix(req.URL.Path, "/private"):
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	return false
}

// on answers requests whose path has a part, once they show credentials; times 0 means always.
func (h *hostile) on(part string, times int, f func(w http.ResponseWriter, req *http.Request)) {
	h.Hook = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, part) || req.Header.Get("Authorization") == "" {
			return false
		}
		if h.mu.Lock(); times > 0 && h.n >= times {
			h.mu.Unlock()
			return false
		}
		h.n++
		h.mu.Unlock()
		f(w, req)
		return true
	}
}

// always is on for rows that publish an ordinary image.
func always(part string, times int, f func(w http.ResponseWriter, req *http.Request)) func(*testing.T, *hostile) bool {
	return func(_ *testing.T, h *hostile) bool {
		h.on(part, times, f)
		return false
	}
}

// status answers with a status and headers, in pairs.
func status(code int, header ...string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

// endless writes until nobody reads any more.
func endless(w http.ResponseWriter, chunk []byte) {
	for {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// raw answers with these bytes, then with more of them without end, and no regard for HTTP.
func raw(first, more string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return // the test misses the answer
		}
		defer conn.Close()
		_, err = conn.Write([]byte(first))
		for err == nil && more != "" {
			_, err = conn.Write([]byte(more))
		}
	}
}

const (
	manifests = "/manifests/"
	blobs     = "/blobs/"
)

// hostileAnswers are answers that lead the guest elsewhere, or nowhere.
func hostileAnswers() []row {
	redirect := func(to func(h *hostile, req *http.Request) string) func(*testing.T, *hostile) bool {
		return func(_ *testing.T, h *hostile) bool {
			h.on(blobs, 0, func(w http.ResponseWriter, req *http.Request) {
				http.Redirect(w, req, to(h, req), http.StatusTemporaryRedirect)
			})
			return false
		}
	}
	silent := func(part string) func(*testing.T, *hostile) bool {
		return func(_ *testing.T, h *hostile) bool {
			h.retry.Stall = 50 * time.Millisecond
			h.on(part, 0, func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
			return false
		}
	}
	return []row{
		{name: "redirect to a file", do: redirect(func(*hostile, *http.Request) string { return "file:///etc/passwd" }), want: "only https is allowed"},
		{name: "redirect to plain HTTP", do: redirect(func(h *hostile, _ *http.Request) string {
			return "http://" + h.elsewhere.Host() + "/x"
		}), want: "only https is allowed"},
		{name: "redirect in a loop", do: redirect(func(_ *hostile, req *http.Request) string { return req.URL.Path }), want: "more than 5 redirects"},
		{name: "redirect to nobody", do: redirect(func(*hostile, *http.Request) string { return "https://127.0.0.1:1/" }), want: "no registry listens"},
		{name: "503 with Retry-After", do: always(blobs, 1, status(503, "Retry-After", "1")), want: ""},
		{name: "503 for good", do: always(blobs, 0, status(503, "Retry-After", "1")), want: "registry answers 503"},
		{name: "429 for a year", do: always(manifests, 0, status(429, "Retry-After", "31536000")), want: "registry refuses more requests"},
		{name: "429 until a date", do: always(manifests, 1, status(429, "Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT")), want: ""},
		{name: "Retry-After of nonsense", do: always(manifests, 1, status(429, "Retry-After", strings.Repeat("9", 1000))), want: ""},
		{name: "404", do: always(blobs, 0, status(404)), want: "not found", is: registry.ErrNotFound},
		{name: "403", do: always(blobs, 0, status(403)), want: "check the credentials that the guest has", is: registry.ErrUnauthorized},
		{name: "a status that there is not", do: always(blobs, 0, status(799)), want: "799"},
		{name: "204 without content", do: always(blobs, 0, status(204)), want: "0 bytes, its manifest says", is: registry.ErrDigest},
		{name: "an error that forges lines", do: always(blobs, 0, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(418)
			_, _ = w.Write([]byte(`{"errors":[{"code":"X","message":"\n\u001b[2Jlevel=INFO msg=\"image is ready\"` + strings.Repeat("x", 50_000) + `"}]}`))
		}), want: "418"},
		{name: "an error without end", do: always(blobs, 0, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(418)
			endless(w, make([]byte, 1<<16))
		}), want: "418"},
		{name: "headers without end", do: always(blobs, 0, raw("HTTP/1.1 200 OK\r\n", "X: "+strings.Repeat("x", 1000)+"\r\n")), want: "headers exceeded"},
		{name: "one header without end", do: always(blobs, 0, raw("HTTP/1.1 200 OK\r\nX: ", strings.Repeat("x", 1000))), want: "headers exceeded"},
		{name: "interim answers without end", do: always(blobs, 0, raw("", "HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 1000)+"\r\n\r\n")), want: "headers exceeded"},
		{name: "no HTTP", do: always(blobs, 0, raw("SSH-2.0-\x1b[2J\r\n", "")), want: "malformed HTTP"},
		{name: "a connection that closes", do: always(blobs, 0, raw("", "")), want: "EOF"},
		{name: "silence instead of a manifest", do: silent(manifests), want: "sends nothing", is: registry.ErrStalled},
		{name: "silence instead of a layer", do: silent(blobs), want: "sends nothing", is: registry.ErrStalled},
	}
}
