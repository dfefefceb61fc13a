// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package trace makes an OpenTelemetry span of every request, as a child of the span that the shim sends along (W3C
// Trace Context in the metadata of ttrpc), and writes the spans to the log.
//
// They go to the log and not to a collector: an exporter of OTLP over HTTP would add 6.25 MB to the agent, the SDK
// alone adds 0.32 MB (measured in a static, stripped linux/amd64 binary with OpenTelemetry 1.46). The log's lines hold all
// that a collector needs.
//
// A span carries the request's method, status code, container id and exec id, all of which the host knows, and nothing
// else of the request: no arguments, environment or data, nor the text of errors. Spans that libraries start inside a
// request are written as well, without their attributes, which may hold URLs with tokens. The trace context comes from
// the untrusted host; it decides about the ids of spans and whether they are written, and nothing else.
package trace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/containerd/ttrpc"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// maxID bounds the ids that a span carries, in bytes.
	maxID = 128
	// traceparent is the name of the metadata item, see W3C Trace Context 1, 3.2.
	traceparent = "traceparent"

	codeKey      = attribute.Key("code")
	containerKey = attribute.Key("container")
	execKey      = attribute.Key("exec")
)

// Tracer makes spans. Make one with New; a nil one makes none. It is safe for concurrent use.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   oteltrace.Tracer
	writer   *writer
}

// New returns a Tracer that writes each span to log when it has ended: the message is "span", the keys are trace_id,
// span_id, parent_span_id, name, start, duration_ms, failed, code, container and exec. It writes in the background; of
// spans that come faster than log takes them, all beyond 1024 are dropped, and counted in a line of their own. Close
// ends it.
func New(log *slog.Logger) *Tracer {
	w := newWriter(log)
	// All is said here that the SDK would otherwise take from the environment, which for PID 1 is the kernel's command line.
	p := sdktrace.NewTracerProvider(
		sdktrace.WithSpanProcessor(w),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())),
		sdktrace.WithResource(resource.Empty()),
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{
			AttributeValueLengthLimit: maxID, AttributeCountLimit: 32, EventCountLimit: 0, LinkCountLimit: 0,
			AttributePerEventCountLimit: 0, AttributePerLinkCountLimit: 0,
		}),
	)
	return &Tracer{provider: p, tracer: p.Tracer("github.com/cloister-cc/cloister/rpc/trace"), writer: w}
}

// Close writes the spans that have ended, until ctx ends. Later ones are dropped.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	// The provider leaves the writer alone if ctx has ended.
	if err := errors.Join(t.provider.Shutdown(ctx), t.writer.Shutdown(ctx)); err != nil {
		return fmt.Errorf("close tracer: %w", err)
	}
	return nil
}

// Intercept puts a span around next, which is to decode the request and to decide on it. A request that next refuses
// makes a failed span even if next hides that from the client. The Intercept of a nil Tracer is next itself.
func (t *Tracer) Intercept(next ttrpc.UnaryServerInterceptor) ttrpc.UnaryServerInterceptor {
	if t == nil {
		return next
	}
	return func(
		ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method,
	) (any, error) {
		ctx, span := t.tracer.Start(withParent(ctx), strings.TrimPrefix(info.FullMethod, "/"),
			oteltrace.WithSpanKind(oteltrace.SpanKindServer))
		defer span.End()
		var refused error
		// What next gives to the method decodes the whole request; what it gets itself may hand out only the bytes.
		resp, err := next(ctx, unmarshal, info, func(ctx context.Context, admit func(any) error) (any, error) {
			return method(ctx, func(request any) error {
				refused = admit(request)
				describe(span, request)
				return refused
			})
		})
		code := status.Code(err)
		if err == nil && refused != nil {
			code = status.Code(refused)
		}
		span.SetAttributes(codeKey.String(code.String()))
		if code != codes.OK {
			span.SetStatus(otelcodes.Error, "")
		}
		return resp, err
	}
}

// withParent puts the span of the request's metadata into ctx. Vendors' tracestate is of no use here and left alone.
func withParent(ctx context.Context) context.Context {
	value, ok := ttrpc.GetMetadataValue(ctx, traceparent)
	if !ok {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{traceparent: value})
}

// describe copies the ids of a request.
func describe(span oteltrace.Span, request any) {
	if r, ok := request.(interface{ GetContainerId() string }); ok {
		setID(span, containerKey, r.GetContainerId())
	}
	if r, ok := request.(interface{ GetExecId() string }); ok {
		setID(span, execKey, r.GetExecId())
	}
}

func setID(span oteltrace.Span, key attribute.Key, id string) {
	if id == "" {
		return
	}
	if len(id) > maxID {
		id = id[:maxID]
	}
	span.SetAttributes(key.String(strings.ToValidUTF8(id, "?")))
}
