// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"
	"sync"
)

// flights runs a function once for all that want its result at the same time.
type flights[V any] struct {
	mu   sync.Mutex
	wg   sync.WaitGroup
	byID map[string]*flight[V]
}

// flight is one run. It goes on while anybody waits for it.
type flight[V any] struct {
	cancel  context.CancelFunc
	waiters int
	done    chan struct{}
	value   V
	err     error
}

// do returns what fn returns, or ctx's error when that ends: at once where others still wait for the run. Callers with the same id share a run of fn; its
// context has the values of the first caller's, and ends when nobody waits any more.
func (f *flights[V]) do(ctx context.Context, id string, fn func(context.Context) (V, error)) (V, error) {
	f.mu.Lock()
	fl, ok := f.byID[id]
	if !ok {
		fl = f.start(ctx, id, fn)
	}
	fl.waiters++
	f.mu.Unlock()
	select {
	case <-fl.done:
		return fl.value, fl.err
	case <-ctx.Done():
		if f.leave(id, fl) {
			<-fl.done // nothing of it goes on behind the last caller's back
		}
		var zero V
		return zero, context.Cause(ctx)
	}
}

// start runs fn. The caller holds the lock.
func (f *flights[V]) start(ctx context.Context, id string, fn func(context.Context) (V, error)) *flight[V] {
	detached, cancel := context.WithCancel(context.WithoutCancel(ctx))
	fl := &flight[V]{cancel: cancel, done: make(chan struct{})}
	if f.byID == nil {
		f.byID = make(map[string]*flight[V])
	}
	f.byID[id] = fl
	f.wg.Go(func() {
		defer cancel()
		fl.value, fl.err = fn(detached)
		f.mu.Lock()
		f.forget(id, fl)
		f.mu.Unlock()
		close(fl.done)
	})
	return fl
}

// leave is called by a waiter that has lost interest. The last one ends the run; whoever comes later starts anew.
func (f *flights[V]) leave(id string, fl *flight[V]) (last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.waiters--
	if fl.waiters > 0 {
		return false
	}
	fl.cancel()
	f.forget(id, fl)
	return true
}

func (f *flights[V]) forget(id string, fl *flight[V]) {
	if f.byID[id] == fl {
		delete(f.byID, id)
	}
}

// close cancels every run and waits for its end.
func (f *flights[V]) close() {
	f.mu.Lock()
	for _, fl := range f.byID {
		fl.cancel()
	}
	f.mu.Unlock()
	f.wg.Wait()
}
