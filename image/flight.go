// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Reasons why a run ends before it is done.
var (
	errClosed    = errors.New("image service is closed")
	errAbandoned = errors.New("nobody has asked for it for too long")
	errCrowded   = errors.New("too many others were abandoned after it")
)

// flights runs a function once for all that want its result at the same time. The zero value ends a run with the last
// that waits for it.
type flights[V any] struct {
	// linger is how long a run goes on that nobody waits for, and most how many of them do. The one that was left first
	// ends when there are more.
	linger time.Duration
	most   int

	mu        sync.Mutex
	wg        sync.WaitGroup
	byID      map[string]*flight[V]
	abandoned []*flight[V] // the one that was left first comes first
	closed    bool
}

// flight is one run.
type flight[V any] struct {
	id      string
	cancel  context.CancelCauseFunc
	waiters int
	timer   *time.Timer // of an abandoned run
	done    chan struct{}
	value   V
	err     error
}

// do returns what fn returns, or ctx's error when that ends first. Callers with the same id share a run of fn; its
// context has the values of the first caller's, and lasts while somebody waits or, after that, for linger.
func (f *flights[V]) do(ctx context.Context, id string, fn func(context.Context) (V, error)) (V, error) {
	var zero V
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return zero, errClosed
	}
	fl, ok := f.byID[id]
	if !ok {
		fl = f.start(ctx, id, fn)
	}
	fl.waiters++
	f.adopt(fl)
	f.mu.Unlock()
	select {
	case <-fl.done:
		return fl.value, fl.err
	case <-ctx.Done():
		if f.leave(fl) {
			<-fl.done // nothing of it goes on behind the last caller's back
		}
		return zero, context.Cause(ctx)
	}
}

// start runs fn. The caller holds the lock.
func (f *flights[V]) start(ctx context.Context, id string, fn func(context.Context) (V, error)) *flight[V] {
	detached, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	fl := &flight[V]{id: id, cancel: cancel, done: make(chan struct{})}
	if f.byID == nil {
		f.byID = make(map[string]*flight[V])
	}
	f.byID[id] = fl
	f.wg.Go(func() {
		defer cancel(nil)
		fl.value, fl.err = fn(detached)
		f.mu.Lock()
		f.forget(fl)
		f.mu.Unlock()
		close(fl.done)
	})
	return fl
}

// leave is called by a waiter that has lost interest. After the last one the run is over, and whoever comes later starts
// anew; or it is abandoned, and whoever comes later joins it.
func (f *flights[V]) leave(fl *flight[V]) (over bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters > 0 || f.byID[fl.id] != fl {
		return false
	}
	if f.linger <= 0 || f.most <= 0 {
		f.end(fl, errAbandoned)
		return true
	}
	f.abandoned = append(f.abandoned, fl)
	fl.timer = time.AfterFunc(f.linger, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if slices.Contains(f.abandoned, fl) {
			f.end(fl, errAbandoned)
		}
	})
	if len(f.abandoned) > f.most {
		f.end(f.abandoned[0], errCrowded)
	}
	return false
}

// adopt takes a run off the abandoned ones. The caller holds the lock.
func (f *flights[V]) adopt(fl *flight[V]) {
	if fl.timer != nil {
		fl.timer.Stop()
		fl.timer = nil
		f.abandoned = slices.DeleteFunc(f.abandoned, func(o *flight[V]) bool { return o == fl })
	}
}

// end cancels a run, and lets nobody join it any more. The caller holds the lock.
func (f *flights[V]) end(fl *flight[V], cause error) {
	fl.cancel(cause)
	f.forget(fl)
}

// forget makes the next caller start anew. The caller holds the lock.
func (f *flights[V]) forget(fl *flight[V]) {
	f.adopt(fl)
	if f.byID[fl.id] == fl {
		delete(f.byID, fl.id)
	}
}

// close cancels every run and waits for its end. Nothing starts any more.
func (f *flights[V]) close() {
	f.mu.Lock()
	f.closed = true
	for _, fl := range f.byID {
		f.end(fl, errClosed)
	}
	f.mu.Unlock()
	f.wg.Wait()
}
