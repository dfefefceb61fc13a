// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package trace

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	otelcodes "go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// queueSize bounds the spans that wait to be written.
const queueSize = 1024

// writer is a sdktrace.SpanProcessor. The SDK's own, which batches, does not tell how many spans it drops.
type writer struct {
	log     *slog.Logger
	queue   chan sdktrace.ReadOnlySpan
	dropped atomic.Uint64

	stop chan struct{}
	once sync.Once
	done chan struct{}
}

func newWriter(log *slog.Logger) *writer {
	w := &writer{
		log: log, queue: make(chan sdktrace.ReadOnlySpan, queueSize),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	go w.run()
	return w
}

// OnStart implements sdktrace.SpanProcessor.
func (*writer) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor. It does not block.
func (w *writer) OnEnd(s sdktrace.ReadOnlySpan) {
	select {
	case <-w.stop:
		w.dropped.Add(1)
		return
	default:
	}
	select {
	case w.queue <- s:
	default:
		w.dropped.Add(1)
	}
}

// Shutdown implements sdktrace.SpanProcessor.
func (w *writer) Shutdown(ctx context.Context) error {
	w.once.Do(func() { close(w.stop) })
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ForceFlush implements sdktrace.SpanProcessor. Nobody here calls it.
func (*writer) ForceFlush(context.Context) error { return nil }

func (w *writer) run() {
	defer close(w.done)
	var told uint64
	tell := func() {
		if n := w.dropped.Load(); n > told {
			w.log.Warn("spans dropped", "spans", n-told)
			told = n
		}
	}
	for {
		select {
		case s := <-w.queue:
			w.write(s)
			tell()
			continue
		case <-w.stop:
		}
		for {
			select {
			case s := <-w.queue:
				w.write(s)
			default:
				tell()
				return
			}
		}
	}
}

func (w *writer) write(s sdktrace.ReadOnlySpan) {
	args := []any{
		"trace_id", s.SpanContext().TraceID().String(),
		"span_id", s.SpanContext().SpanID().String(),
		"name", s.Name(),
		"start", s.StartTime().Format(time.RFC3339Nano),
		"duration_ms", float64(s.EndTime().Sub(s.StartTime()).Microseconds()) / 1000,
		"failed", s.Status().Code == otelcodes.Error,
	}
	if s.Parent().SpanID().IsValid() {
		args = append(args, "parent_span_id", s.Parent().SpanID().String())
	}
	for _, a := range s.Attributes() {
		switch a.Key {
		case codeKey, containerKey, execKey:
			args = append(args, string(a.Key), a.Value.AsString())
		}
	}
	w.log.Info("span", args...)
}
