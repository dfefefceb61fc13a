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
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

// Retry says how a client goes on when a registry, or the way to it, fails for a while. Zero fields take their defaults.
type Retry struct {
	// Attempts is how often in a row a registry may fail without anything new from it, default 6. A mirror, after which
	// something else can be tried, gets two.
	Attempts int
	// Base is the pause before the second attempt, default 500 ms. It doubles with every further one up to Max, default
	// 30 s. A random part of up to a half is taken off, so that guests which failed together do not come back together.
	Base, Max time.Duration
	// Stall is how long a registry may send less than 4 KiB, default 60 s. Time in which nobody reads does not count.
	Stall time.Duration
}

// Defaults of Retry.
const (
	DefaultAttempts = 6
	DefaultBase     = 500 * time.Millisecond
	DefaultMax      = 30 * time.Second
	DefaultStall    = time.Minute
)

// mirrorAttempts is Retry.Attempts of what is not the last to be asked.
const mirrorAttempts = 2

// refusedAttempts is Retry.Attempts where nothing listens before anything has come: most likely the address is wrong.
const refusedAttempts = 3

// enough is how many bytes make a failure count as the first one again. Less could go on without end.
const enough = 256 << 10

// trickle is how many bytes must come within Retry.Stall.
const trickle = 4 << 10

// ErrStalled means that a registry has sent nothing, or next to nothing, for as long as it may.
var ErrStalled = errors.New("registry sends nothing, or next to nothing,")

func (r Retry) withDefaults() Retry {
	if r.Attempts <= 0 {
		r.Attempts = DefaultAttempts
	}
	if r.Base <= 0 {
		r.Base = DefaultBase
	}
	if r.Max <= 0 {
		r.Max = DefaultMax
	}
	if r.Stall <= 0 {
		r.Stall = DefaultStall
	}
	return r
}

// pause returns how long to wait after that many failures in a row, at least what the registry has asked for if that is
// not more than Max.
func (r Retry) pause(failures int, err error) time.Duration {
	d := r.Base
	for i := 1; i < failures && d < r.Max; i++ {
		d *= 2
	}
	d = min(d, r.Max)
	d -= rand.N(d/2 + 1) //nolint:gosec // spreads load, keeps no secret
	if s, ok := errors.AsType[*statusError](err); ok {
		d = max(d, min(s.after, r.Max))
	}
	return d
}

// sleep waits unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// again calls f until it succeeds, fails for good, or has failed attempts times. What it is about is for the log.
func (c *Client) again(ctx context.Context, what string, attempts int, f func(ctx context.Context) error) error {
	for failures := 1; ; failures++ {
		attempt, w := newWatch(ctx, c.retry.Stall)
		w.start()
		err := w.explain(f(attempt))
		w.end()
		if err == nil || final(ctx, err) {
			return err
		}
		if failures >= attempts || failures >= refusedAttempts && errors.Is(err, syscall.ECONNREFUSED) {
			return gaveUp(failures, err)
		}
		if err := c.wait(ctx, what, failures, err); err != nil {
			return err
		}
	}
}

// wait logs a failure and pauses.
func (c *Client) wait(ctx context.Context, what string, failures int, err error) error {
	d := c.retry.pause(failures, err)
	c.log.Warn("registry failed, trying again", "reference", what, "failures", failures, "pause", d, "error", shown(err))
	return sleep(ctx, d)
}

func gaveUp(failures int, err error) error {
	if failures == 1 {
		return err
	}
	return fmt.Errorf("gave up after %d attempts: %w", failures, err)
}

// statusError is an answer that may be another one later.
type statusError struct {
	status int
	after  time.Duration // what Retry-After asks for
}

func (e *statusError) Error() string {
	if e.status == http.StatusTooManyRequests {
		return "registry refuses more requests for now (429 Too Many Requests)"
	}
	return fmt.Sprintf("registry answers %d %s", e.status, http.StatusText(e.status))
}

// passing returns an error for an answer of the kind that may pass, nil for others.
func passing(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return &statusError{resp.StatusCode, retryAfter(resp.Header.Get("Retry-After"))}
	}
	return nil
}

// retryAfter reads seconds or a date, see RFC 9110, section 10.2.3. Anything else asks for nothing.
func retryAfter(s string) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

// droppedError stands for a connection that has ended too early. It hides io.ErrUnexpectedEOF and timeouts from
// containerd, which would start anew at once and, while any byte comes, without end.
type droppedError struct{ err error }

func (e *droppedError) Error() string { return e.err.Error() }

// Is keeps what Explain looks for.
func (e *droppedError) Is(target error) bool {
	return target == syscall.ECONNREFUSED && errors.Is(e.err, target)
}

// As keeps what Explain looks for.
func (e *droppedError) As(target any) bool {
	if dns, ok := target.(**net.DNSError); ok {
		return errors.As(e.err, dns)
	}
	return false
}

// dropped turns an error of the transport or of a body into a droppedError, unless the request was ended by us or the
// error would be the same again.
func dropped(ended, err error) error {
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		dns       *net.DNSError
	)
	switch {
	case ended != nil, errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errTooLarge),
		errors.As(err, &authority), errors.As(err, &hostname), errors.As(err, &invalid),
		errors.As(err, &verify), errors.As(err, &record), errors.As(err, &dns) && dns.IsNotFound:
		return err
	}
	return &droppedError{err}
}

// final tells whether an error would be the same at the next attempt.
func final(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	if errors.Is(err, ErrStalled) {
		return false
	}
	if _, ok := errors.AsType[*droppedError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*statusError](err); ok {
		return false
	}
	// A token service's answer reaches us through containerd.
	s, ok := errors.AsType[remoteserrors.ErrUnexpectedStatus](err)
	return !ok || passing(&http.Response{StatusCode: s.StatusCode}) == nil
}

// watch ends an attempt in which too little comes for a while. It is used by one goroutine at a time.
type watch struct {
	limit  time.Duration
	left   time.Duration // of the period, when it was last started
	began  time.Time     // when that was
	bytes  int           // that have come in the period
	timer  *time.Timer
	cancel context.CancelCauseFunc
	cause  func() error
}

// watchKey is the context key of an attempt's watch.
type watchKey struct{}

// newWatch returns the context of an attempt. The caller ends the watch.
func newWatch(ctx context.Context, limit time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{limit: limit, left: limit, cancel: cancel}
	w.timer = time.AfterFunc(limit, func() { cancel(ErrStalled) })
	w.timer.Stop()
	w.cause = func() error { return context.Cause(ctx) }
	return context.WithValue(ctx, watchKey{}, w), w
}

func watchOf(ctx context.Context) *watch {
	w, _ := ctx.Value(watchKey{}).(*watch)
	return w
}

// start goes on with the period, in which something must come.
func (w *watch) start() {
	w.began = time.Now()
	w.timer.Reset(w.left)
}

// came counts bytes; enough of them begin a new period. It is called between start and pause.
func (w *watch) came(n int) {
	if w.bytes += n; w.bytes < trickle {
		return
	}
	w.bytes, w.left = 0, w.limit
	w.start()
}

// pause is for the time in which nothing is waited for.
func (w *watch) pause() {
	w.timer.Stop()
	w.left = max(0, w.left-time.Since(w.began))
}

func (w *watch) end() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// explain says why an attempt failed that the watch has ended.
func (w *watch) explain(err error) error {
	if err != nil && errors.Is(w.cause(), ErrStalled) {
		return fmt.Errorf("%w for %v", ErrStalled, w.limit)
	}
	return err
}
