// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package trace

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister-cc/cloister/rpc/pb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
	parent  = "00-" + traceID + "-" + spanID + "-01"
	method  = "/grpc.AgentService/ExecProcess"
)

// request has what a span may tell and what it must not.
var request = &pb.ExecProcessRequest{
	ContainerId: "c1", ExecId: "e1", Process: &pb.Process{Args: []string{"CANARY"}, Env: []string{"X=CANARY"}},
}

// guard stands for what rpc puts around every request: it decodes from the bytes, asks, and may hide its refusal.
func guard(deny error, hide bool) ttrpc.UnaryServerInterceptor {
	return func(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
		resp, err := method(ctx, func(obj any) error {
			var carrier emptypb.Empty
			if err := unmarshal(&carrier); err != nil {
				return err
			}
			if err := proto.Unmarshal(carrier.ProtoReflect().GetUnknown(), obj.(proto.Message)); err != nil {
				return err
			}
			return deny
		})
		if hide {
			return nil, nil
		}
		return resp, err
	}
}

func unmarshaler(m proto.Message) ttrpc.Unmarshaler {
	return func(obj any) error {
		b, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		return proto.Unmarshal(b, obj.(proto.Message))
	}
}

func serve(result error) ttrpc.Method {
	return func(_ context.Context, unmarshal func(any) error) (any, error) {
		if err := unmarshal(new(pb.ExecProcessRequest)); err != nil {
			return nil, err
		}
		return &emptypb.Empty{}, result
	}
}

// spans calls f with a Tracer and returns what it has written.
func spans(t *testing.T, f func(tr *Tracer)) []map[string]any {
	t.Helper()
	var b bytes.Buffer
	tr := New(slog.New(slog.NewJSONHandler(&b, nil)))
	f(tr)
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "CANARY") {
		t.Errorf("the log has more than it may: %s", b.String())
	}
	var got []map[string]any
	for d := json.NewDecoder(&b); ; {
		var m map[string]any
		err := d.Decode(&m)
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m)
	}
}

func with(ctx context.Context, traceparent string) context.Context {
	md := ttrpc.MD{}
	md.Set("traceparent", traceparent)
	md.Set("tracestate", "a=b")
	md.Set("baggage", "x=CANARY")
	return ttrpc.WithMetadata(ctx, md)
}

func TestSpan(t *testing.T) {
	denied := status.Error(codes.PermissionDenied, "CANARY is blocked by policy")
	for _, tt := range []struct {
		name         string
		deny, result error
		hide         bool
		code         string
	}{
		{"served", nil, nil, false, "OK"},
		{"denied", denied, nil, false, "PermissionDenied"},
		{"denied and hidden", denied, nil, true, "PermissionDenied"},
		{"failed", nil, status.Error(codes.NotFound, "CANARY"), false, "NotFound"},
		{"failed without a code", nil, errors.New("CANARY"), false, "Unknown"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var wantErr error
			if !tt.hide {
				wantErr = errors.Join(tt.deny, tt.result)
			}
			got := spans(t, func(tr *Tracer) {
				_, err := tr.Intercept(guard(tt.deny, tt.hide))(with(t.Context(), parent), unmarshaler(request),
					&ttrpc.UnaryServerInfo{FullMethod: method}, serve(tt.result))
				if (err == nil) != (wantErr == nil) {
					t.Errorf("%v, want %v", err, wantErr)
				}
			})
			if len(got) != 1 {
				t.Fatalf("%d spans: %v", len(got), got)
			}
			s := got[0]
			if id := s["span_id"]; id == spanID || len(id.(string)) != 16 {
				t.Errorf("span id %q", id)
			}
			if d, ok := s["duration_ms"].(float64); !ok || d < 0 {
				t.Errorf("duration %v", s["duration_ms"])
			}
			for _, k := range []string{"time", "start", "duration_ms", "span_id"} {
				delete(s, k)
			}
			want := map[string]any{
				"level": "INFO", "msg": "span", "trace_id": traceID, "parent_span_id": spanID,
				"name": "grpc.AgentService/ExecProcess", "failed": tt.code != "OK", "code": tt.code, "container": "c1", "exec": "e1",
			}
			if diff := cmp.Diff(want, s); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestOverTheWire has a ttrpc client send the metadata as the shim does.
func TestOverTheWire(t *testing.T) {
	got := spans(t, func(tr *Tracer) {
		server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(tr.Intercept(guard(nil, false))))
		if err != nil {
			t.Fatal(err)
		}
		server.Register("grpc.AgentService", map[string]ttrpc.Method{"ExecProcess": serve(nil)})
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- server.Serve(context.Background(), l) }()
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		client := ttrpc.NewClient(conn)
		err = client.Call(with(t.Context(), parent), "grpc.AgentService", "ExecProcess", request, new(emptypb.Empty))
		if err != nil {
			t.Error(err)
		}
		_ = client.Close()
		_ = server.Close()
		if err := <-done; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Error(err)
		}
	})
	if len(got) != 1 || got[0]["parent_span_id"] != spanID || got[0]["trace_id"] != traceID || got[0]["container"] != "c1" {
		t.Errorf("spans %v", got)
	}
}

func TestParents(t *testing.T) {
	for _, tt := range []struct {
		name, traceparent string
		child, written    bool
	}{
		{"sampled", parent, true, true},
		{"not sampled", strings.TrimSuffix(parent, "1") + "0", true, false},
		{"empty", "", false, true},
		{"garbage", "\x00\xff-x", false, true},
		{"zero ids", "00-00000000000000000000000000000000-0000000000000000-01", false, true},
		{"long", strings.Repeat(parent, 1000), false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := spans(t, func(tr *Tracer) {
				_, err := tr.Intercept(guard(nil, false))(with(t.Context(), tt.traceparent), unmarshaler(request),
					&ttrpc.UnaryServerInfo{FullMethod: method}, serve(nil))
				if err != nil {
					t.Error(err)
				}
			})
			if !tt.written {
				if len(got) != 0 {
					t.Errorf("spans %v", got)
				}
				return
			}
			if len(got) != 1 || (got[0]["trace_id"] == traceID) != tt.child || (got[0]["parent_span_id"] != nil) != tt.child {
				t.Errorf("spans %v", got)
			}
		})
	}
}

// A library's span inside a request is a child of the request's; its attributes are not written.
func TestInnerSpan(t *testing.T) {
	got := spans(t, func(tr *Tracer) {
		_, err := tr.Intercept(guard(nil, false))(with(t.Context(), parent), unmarshaler(request),
			&ttrpc.UnaryServerInfo{FullMethod: method}, func(ctx context.Context, _ func(any) error) (any, error) {
				_, inner := oteltrace.SpanFromContext(ctx).TracerProvider().Tracer("lib").Start(ctx, "HTTP GET")
				inner.SetAttributes(attribute.String("url.full", "https://blobs/?token=CANARY"))
				inner.RecordError(errors.New("CANARY"))
				inner.End()
				return &emptypb.Empty{}, nil
			})
		if err != nil {
			t.Error(err)
		}
	})
	if len(got) != 2 || got[0]["name"] != "HTTP GET" || got[0]["parent_span_id"] != got[1]["span_id"] {
		t.Errorf("spans %v", got)
	}
}

func TestEnvironmentIsIgnored(t *testing.T) {
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	t.Setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "0")
	got := spans(t, func(tr *Tracer) {
		_, _ = tr.Intercept(guard(nil, false))(t.Context(), unmarshaler(request), &ttrpc.UnaryServerInfo{FullMethod: method}, serve(nil))
	})
	if len(got) != 1 || got[0]["container"] != "c1" {
		t.Errorf("spans %v", got)
	}
}

func TestLongID(t *testing.T) {
	got := spans(t, func(tr *Tracer) {
		_, _ = tr.Intercept(guard(nil, false))(t.Context(), unmarshaler(&pb.ExecProcessRequest{ContainerId: strings.Repeat("é", 1000)}),
			&ttrpc.UnaryServerInfo{FullMethod: method}, serve(nil))
	})
	if len(got) != 1 || got[0]["container"] != strings.Repeat("é", maxID/2) {
		t.Errorf("spans %v", got)
	}
}

func TestNilTracer(t *testing.T) {
	var tr *Tracer
	resp, err := tr.Intercept(guard(nil, false))(t.Context(), unmarshaler(request), &ttrpc.UnaryServerInfo{FullMethod: method}, serve(nil))
	if resp == nil || err != nil || tr.Close(t.Context()) != nil {
		t.Error("a nil Tracer is not a pass-through:", resp, err)
	}
}

// stuck is a handler that takes nothing until it is let go.
type stuck struct {
	slog.Handler
	once    sync.Once
	entered chan struct{}
	let     chan struct{}
}

func (s *stuck) Handle(ctx context.Context, r slog.Record) error {
	s.once.Do(func() { close(s.entered) })
	<-s.let
	return s.Handler.Handle(ctx, r)
}

// A log that takes nothing delays no request; what is lost is counted and told.
func TestLogThatIsStuck(t *testing.T) {
	var b bytes.Buffer
	h := &stuck{Handler: slog.NewTextHandler(&b, nil), entered: make(chan struct{}), let: make(chan struct{})}
	tr := New(slog.New(h))
	serveOne := func() {
		_, _ = tr.Intercept(guard(nil, false))(t.Context(), unmarshaler(request), &ttrpc.UnaryServerInfo{FullMethod: method}, serve(nil))
	}
	serveOne()
	<-h.entered
	for range queueSize + 10 {
		serveOne()
	}
	if got := tr.writer.dropped.Load(); got != 10 {
		t.Errorf("%d dropped, want 10", got)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tr.Close(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("close with a stuck log: %v", err)
	}
	serveOne()
	if got := tr.writer.dropped.Load(); got != 10 && got != 11 { // the SDK may not have ended it at all
		t.Errorf("%d dropped after Close", got)
	}
	close(h.let)
	<-tr.writer.done
	if got := strings.Count(b.String(), "msg=span "); got != queueSize+1 {
		t.Errorf("%d spans written, want %d", got, queueSize+1)
	}
	if !strings.Contains(b.String(), `level=WARN msg="spans dropped" spans=1`) { // 10 or 11
		t.Error("the loss is not told")
	}
}

func FuzzTraceparent(f *testing.F) {
	for _, s := range []string{
		parent, "", "00-", "ff-" + traceID + "-" + spanID + "-01", "cc-" + traceID + "-" + spanID + "-01-extra",
		"00-" + strings.ToUpper(traceID) + "-" + spanID + "-01", strings.Repeat("-", 100), "\xff\x00",
	} {
		f.Add(s, "c1")
	}
	f.Fuzz(func(t *testing.T, traceparent, id string) {
		var b bytes.Buffer
		tr := New(slog.New(slog.NewJSONHandler(&b, nil)))
		_, err := tr.Intercept(guard(nil, false))(with(t.Context(), traceparent), unmarshaler(request),
			&ttrpc.UnaryServerInfo{FullMethod: method}, func(_ context.Context, admit func(any) error) (any, error) {
				err := admit(&pb.ExecProcessRequest{})
				describe(oteltrace.SpanFromContext(t.Context()), &pb.ExecProcessRequest{ContainerId: id, ExecId: id})
				return &emptypb.Empty{}, err
			})
		if err != nil {
			t.Error(err)
		}
		if err := tr.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if b.Len() > 4096 || bytes.Count(b.Bytes(), []byte("\n")) > 1 {
			t.Errorf("a host wrote %q", b.String())
		}
	})
}
