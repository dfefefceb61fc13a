// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// answer is how a scripted registry answers one request.
type answer struct {
	status     int    // 0: 200 or, to a request for a range, 206
	send       int    // bytes, -1: all
	then       error  // after them; nil: a clean end. errSilence: nothing at all
	noRanges   bool   // the whole blob, whatever was asked for
	badRange   bool   // other bytes than the ones asked for
	retryAfter string // header
	fail       error  // instead of any answer
	slow       bool   // 10 bytes every 1.1 s
}

var errSilence = errors.New("silence")

// script answers requests for one blob, in that order; after its end with the last answer.
type script struct {
	data    []byte
	answers []answer

	mu     sync.Mutex
	ranges []string
	hosts  []string
	times  []time.Time
}

func (s *script) next(req *http.Request) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ranges = append(s.ranges, req.Header.Get("Range"))
	s.hosts = append(s.hosts, req.URL.Host)
	s.times = append(s.times, time.Now())
	return s.answers[min(len(s.ranges), len(s.answers))-1]
}

// RoundTrip implements http.RoundTripper.
func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	a := s.next(req)
	if a.fail != nil {
		return nil, a.fail
	}
	resp := &http.Response{StatusCode: a.status, Status: fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)), Header: http.Header{}, Request: req, ContentLength: -1}
	if a.retryAfter != "" {
		resp.Header.Set("Retry-After", a.retryAfter)
	}
	if a.status >= 300 {
		resp.Body = io.NopCloser(strings.NewReader("{}"))
		return resp, nil
	}
	resp.StatusCode = http.StatusOK
	data := s.data
	if r := req.Header.Get("Range"); r != "" && !a.noRanges {
		from, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r, "bytes="), "-"))
		if err != nil {
			return nil, err
		}
		resp.StatusCode, data = http.StatusPartialContent, data[from:]
		if a.badRange {
			from++
		}
		resp.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(s.data)-1, len(s.data)))
	}
	if a.send >= 0 {
		data = data[:min(a.send, len(data))]
	}
	resp.Body = &scriptBody{ctx: req.Context(), r: bytes.NewReader(data), then: a.then, slow: a.slow}
	return resp, nil
}

type scriptBody struct {
	ctx  context.Context
	r    *bytes.Reader
	then error
	slow bool
}

func (b *scriptBody) Read(p []byte) (int, error) {
	if b.slow {
		p = p[:min(len(p), 10)]
		select {
		case <-time.After(1100 * time.Millisecond):
		case <-b.ctx.Done():
			return 0, context.Cause(b.ctx)
		}
	}
	n, err := b.r.Read(p)
	switch {
	case err == nil || b.then == nil:
		return n, err
	case errors.Is(b.then, errSilence):
		<-b.ctx.Done()
		return 0, context.Cause(b.ctx)
	}
	return 0, b.then
}

func (b *scriptBody) Close() error { return nil }

// blobOf is what the tests fetch: enough for failures to be counted anew.
func blobOf(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	return data
}

func TestResume(t *testing.T) {
	const size = 1 << 20
	drop := answer{send: enough, then: io.ErrUnexpectedEOF}
	rest := answer{send: -1}
	reset := answer{send: 1000, then: syscall.ECONNRESET}
	for _, tt := range []struct {
		name     string
		answers  []answer
		ranges   []string // what is asked for; nil: not looked at
		is       error
		want     string // "": success
		requests int    // 0: not looked at
		least    time.Duration
		most     time.Duration
	}{
		{name: "no failure", answers: []answer{rest}, ranges: []string{""}},
		{name: "dropped once", answers: []answer{drop, rest}, ranges: []string{"", "bytes=262144-"}, least: 250 * time.Millisecond, most: 500 * time.Millisecond},
		{
			name: "dropped often, with progress", answers: []answer{drop, drop, drop, rest},
			ranges: []string{"", "bytes=262144-", "bytes=524288-", "bytes=786432-"}, most: 1500 * time.Millisecond,
		},
		{name: "reset", answers: []answer{reset, reset, rest}, ranges: []string{"", "bytes=1000-", "bytes=2000-"}},
		{name: "reset without end", answers: []answer{reset}, want: "gave up after 6 attempts", requests: 6, least: 7 * time.Second, most: 16 * time.Second},
		{name: "stalls", answers: []answer{{send: 1000, then: errSilence}, rest}, ranges: []string{"", "bytes=1000-"}, least: time.Minute, most: 61 * time.Second},
		{name: "stalls for good", answers: []answer{{send: 1000, then: errSilence}}, is: ErrStalled, want: "gave up after 6 attempts", requests: 6},
		{
			name: "trickles", answers: []answer{{send: -1, slow: true}, rest}, ranges: []string{"", "bytes=540-"},
			least: time.Minute, most: 61 * time.Second,
		},
		{name: "trickles for good", answers: []answer{{send: -1, slow: true}}, is: ErrStalled, want: "gave up after 6 attempts", requests: 6},
		{name: "ranges are ignored", answers: []answer{drop, {send: -1, noRanges: true}}, ranges: []string{"", "bytes=262144-"}},
		{name: "ranges are ignored and it stalls", answers: []answer{drop, {send: 1000, then: errSilence, noRanges: true}, rest}, ranges: []string{"", "bytes=262144-", "bytes=262144-"}},
		{name: "416", answers: []answer{drop, {status: 416}, rest}, ranges: []string{"", "bytes=262144-", ""}},
		{name: "416 and shorter", answers: []answer{drop, {status: 416}, {send: 1000}}, is: ErrDigest, want: "ends before byte 262144", requests: 3},
		{name: "416 at once", answers: []answer{{status: 416}}, want: "416", requests: 1},
		{name: "another range", answers: []answer{drop, {send: -1, badRange: true}}, is: ErrDigest, want: "to a request for bytes from 262144 on", requests: 2},
		{name: "clean end too early", answers: []answer{{send: enough}, rest}, ranges: []string{"", "bytes=262144-"}},
		{name: "no more than that", answers: []answer{{send: enough}, {send: 0}}, is: ErrDigest, want: "its manifest says 1048576", requests: 2},
		{name: "429", answers: []answer{{status: 429, retryAfter: "10"}, rest}, requests: 2, least: 10 * time.Second, most: 10 * time.Second},
		{name: "429 for a day", answers: []answer{{status: 429, retryAfter: "86400"}}, want: "429 Too Many Requests", requests: 6, least: 150 * time.Second, most: 150 * time.Second},
		{name: "503 in between", answers: []answer{drop, {status: 503}, rest}, ranges: []string{"", "bytes=262144-", "bytes=262144-"}},
		{name: "refused in between", answers: []answer{drop, {fail: syscall.ECONNREFUSED}, {fail: io.EOF}, rest}, requests: 4},
		{name: "404", answers: []answer{{status: 404}}, is: ErrNotFound, want: "not found", requests: 1},
		{name: "403 later", answers: []answer{drop, {status: 403}}, is: ErrUnauthorized, want: "check the credentials", requests: 2},
		{name: "401", answers: []answer{{status: 401}}, is: ErrUnauthorized, want: "check the credentials", requests: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{data: blobOf(size), answers: tt.answers}
				start := time.Now()
				data, err := fetchBlob(t, s, nil, s.data)
				took := time.Since(start)
				if tt.want == "" && (err != nil || !bytes.Equal(data, s.data)) {
					t.Errorf("%d bytes, %v", len(data), err)
				}
				if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) || tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("error %v, want %q (%v)", err, tt.want, tt.is)
				}
				if tt.ranges != nil && fmt.Sprint(s.ranges) != fmt.Sprint(tt.ranges) {
					t.Errorf("asked for %q, want %q", s.ranges, tt.ranges)
				}
				if tt.requests != 0 && len(s.ranges) != tt.requests {
					t.Errorf("%d requests, want %d", len(s.ranges), tt.requests)
				}
				if took < tt.least || tt.most != 0 && took > tt.most {
					t.Errorf("took %v of fake time, want %v to %v", took, tt.least, tt.most)
				}
			})
		})
	}
}

// fetchBlob reads a blob through a client whose requests are answered by s.
func fetchBlob(t *testing.T, s *script, r *Registries, want []byte) ([]byte, error) {
	t.Helper()
	c := newClientWith(Config{Registries: r}, strict{next: s})
	defer c.Close()
	rc, err := c.Blob(t.Context(), parse(t, "registry.example/a/b:1"), ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(want), Size: int64(len(want)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// What was put together from parts is judged as a whole.
func TestResumeIsVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := blobOf(1 << 20)
		want := bytes.Clone(other)
		other[len(other)-1] ^= 1
		s := &script{data: other, answers: []answer{{send: 5000, then: io.ErrUnexpectedEOF}, {send: -1}}}
		if _, err := fetchBlob(t, s, nil, want); !errors.Is(err, ErrDigest) {
			t.Errorf("error %v, want ErrDigest", err)
		}
		if len(s.ranges) != 2 {
			t.Errorf("%d requests: a wrong digest is for good", len(s.ranges))
		}
	})
}

// A reader that takes its time is not a registry that stalls, and the caller's end ends the pauses.
func TestSlowReaderAndCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{data: blobOf(1 << 20), answers: []answer{{send: -1}}}
		c := newClientWith(Config{}, strict{next: s})
		defer c.Close()
		desc := ocispec.Descriptor{Digest: digest.FromBytes(s.data), Size: int64(len(s.data))}
		rc, err := c.Blob(t.Context(), parse(t, "registry.example/a/b:1"), desc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, rc, 1000); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if _, err := io.Copy(io.Discard, rc); err != nil || len(s.ranges) != 1 {
			t.Errorf("after an hour: %v, %d requests", err, len(s.ranges))
		}
		if err := rc.Close(); err != nil {
			t.Error(err)
		}

		s = &script{data: s.data, answers: []answer{{fail: syscall.ECONNRESET}}}
		c = newClientWith(Config{Retry: Retry{Base: time.Hour, Max: time.Hour}}, strict{next: s})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if _, err := c.Resolve(ctx, parse(t, "registry.example/a/b:1")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Resolve: %v", err)
		}
		if took := time.Since(start); took != time.Minute {
			t.Errorf("the caller's end was noticed after %v of fake time", took)
		}
	})
}

// Manifests and tags are asked for again, too, and less often where nobody listens.
func TestResolveIsRetried(t *testing.T) {
	for name, tt := range map[string]struct {
		answer   answer
		requests int
		want     string
	}{
		"500":      {answer{status: 500}, 6, "500 Internal Server Error"},
		"reset":    {answer{fail: syscall.ECONNRESET}, 6, "reset"},
		"refused":  {answer{fail: syscall.ECONNREFUSED}, 3, "no registry listens at registry.example"},
		"404":      {answer{status: 404}, 1, "not found"},
		"teapot":   {answer{status: 418}, 1, "418"},
		"silence":  {answer{send: 0, then: errSilence}, 6, "sends nothing"},
		"deadline": {answer{fail: context.DeadlineExceeded}, 6, "deadline"}, // the transport's own, not the caller's
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answers: []answer{tt.answer}}
				c := newClientWith(Config{}, strict{next: s})
				defer c.Close()
				_, err := c.Manifest(t.Context(), parse(t, "registry.example/a/b:1"), digest.FromString("x"))
				if err == nil || !strings.Contains(err.Error(), tt.want) || len(s.ranges) != tt.requests {
					t.Errorf("%d requests, want %d: %v", len(s.ranges), tt.requests, err)
				}
			})
		})
	}
}

func TestPause(t *testing.T) {
	r := Retry{}.withDefaults()
	for failures, want := range map[int]time.Duration{
		1: 500 * time.Millisecond, 2: time.Second, 5: 8 * time.Second, 7: 30 * time.Second, 1 << 20: 30 * time.Second,
	} {
		seen := make(map[time.Duration]bool)
		for range 100 {
			d := r.pause(failures, errors.New("x"))
			if d < want/2 || d > want {
				t.Fatalf("after %d failures %v, want %v to %v", failures, d, want/2, want)
			}
			seen[d] = true
		}
		if len(seen) < 2 {
			t.Errorf("after %d failures the pause is always the same", failures)
		}
	}
	for in, want := range map[string]time.Duration{"": 0, "5": 5 * time.Second, "-1": 0, "x": 0, "99999999999999": 0, "Wed, 21 Oct 2015 07:28:00 GMT": 0} {
		if got := retryAfter(in); got != want {
			t.Errorf("Retry-After %q is %v, want %v", in, got, want)
		}
	}
}

// The same over real connections, HTTP/1.1 and HTTP/2: the server drops each of them after a part.
func TestResumeOverTLS(t *testing.T) {
	for name, h2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			data := blobOf(3 << 20)
			var requests atomic.Int32
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if (req.ProtoMajor == 2) != h2 {
					t.Errorf("protocol %s", req.Proto)
				}
				if n := requests.Add(1); n < 4 {
					w = &droppingWriter{ResponseWriter: w, left: 700_000}
				}
				http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
			}))
			server.EnableHTTP2 = h2
			server.StartTLS()
			defer server.Close()
			pool := x509.NewCertPool()
			pool.AddCert(server.Certificate())
			config := Config{CA: pool, Retry: Retry{Base: time.Millisecond}}
			transport := newTransport(pool, "", "")
			if !h2 {
				transport.ForceAttemptHTTP2 = false
			}
			c := newClientWith(config, strict{next: transport})
			defer c.Close()
			rc, err := c.Blob(t.Context(), parse(t, server.Listener.Addr().String()+"/a/b:1"), ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))})
			if err != nil {
				t.Fatal(err)
			}
			defer rc.Close()
			got, err := io.ReadAll(rc)
			if err != nil || !bytes.Equal(got, data) || requests.Load() != 4 {
				t.Errorf("%d bytes after %d requests, %v", len(got), requests.Load(), err)
			}
		})
	}
}

// droppingWriter breaks the connection off after some bytes.
type droppingWriter struct {
	http.ResponseWriter
	left int
}

func (w *droppingWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		_, _ = w.ResponseWriter.Write(p[:w.left])
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	w.left -= len(p)
	return w.ResponseWriter.Write(p)
}

func TestTagIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{data: []byte("manifest"), answers: []answer{{status: 503, retryAfter: "2"}, {fail: syscall.ECONNRESET}, {send: -1}}}
		c := newClientWith(Config{}, strict{next: s})
		defer c.Close()
		desc, err := c.Resolve(t.Context(), parse(t, "registry.example/a/b:1"))
		if err != nil || desc.Digest != digest.FromBytes(s.data) || len(s.ranges) != 4 { // HEAD says no digest: GET
			t.Errorf("%v after %d requests, %v", desc.Digest, len(s.ranges), err)
		}
	})
}
