// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package logport

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var id = Identity{Name: "kata-agent", Source: "agent", Version: "1.2.3"}

// decode does what kata-log-parser does: everything must be a string.
func decode(t *testing.T, line []byte) map[string]string {
	t.Helper()
	var m map[string]string
	if err := json.Unmarshal(line, &m); err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	return m
}

type secret struct{}

func (secret) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "REDACTED") }

func TestHandler(t *testing.T) {
	base := map[string]string{
		"msg": "m", "level": "INFO", "pid": strconv.Itoa(os.Getpid()), "name": "kata-agent", "source": "agent",
		"version": "1.2.3", "subsystem": "root",
	}
	for _, tt := range []struct {
		name  string
		level slog.Level
		attrs []any
		want  map[string]string
	}{
		{"plain", slog.LevelInfo, nil, nil},
		{"trace", slog.LevelDebug - 4, nil, map[string]string{"level": "TRCE"}},
		{"debug", slog.LevelDebug, nil, map[string]string{"level": "DEBG"}},
		{"warn", slog.LevelWarn, nil, map[string]string{"level": "WARN"}},
		{"error", slog.LevelError, nil, map[string]string{"level": "ERRO"}},
		{"critical", slog.LevelError + 4, nil, map[string]string{"level": "CRIT"}},
		{
			"types", slog.LevelInfo,
			[]any{"i", 1, "b", true, "d", time.Second, "f", 1.5, "e", errors.New("bad"), "n", nil, "s", []int{1}},
			map[string]string{"i": "1", "b": "true", "d": "1s", "f": "1.5", "e": "bad", "n": "<nil>", "s": "[1]"},
		},
		{"subsystem", slog.LevelInfo, []any{"subsystem", "rpc"}, map[string]string{"subsystem": "rpc"}},
		{"container", slog.LevelInfo, []any{"container", "c1"}, map[string]string{"container-id": "c1"}},
		{
			"keys of the format", slog.LevelInfo,
			[]any{"pid", 7, "source", "host", "level", "x", "msg", "y"},
			map[string]string{"field.pid": "7", "field.source": "host", "field.level": "x", "field.msg": "y"},
		},
		{"group", slog.LevelInfo, []any{slog.Group("g", "a", 1, slog.Group("h", "pid", 2))}, map[string]string{"g.a": "1", "g.h.pid": "2"}},
		{"twice", slog.LevelInfo, []any{"a", 1, "a", 2}, map[string]string{"a": "2"}},
		{"injection", slog.LevelInfo, []any{"a", "x\",\"level\":\"CRIT\n{}\x00\xff"}, map[string]string{"a": "x\",\"level\":\"CRIT\n{}\x00\ufffd"}},
		{"long", slog.LevelInfo, []any{"a", strings.Repeat("x", maxValue+1)}, map[string]string{"a": strings.Repeat("x", maxValue) + "..."}},
		{"secret", slog.LevelInfo, []any{"a", secret{}}, map[string]string{"a": "REDACTED"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			r := slog.NewRecord(time.Time{}, tt.level, "m", 0)
			r.Add(tt.attrs...)
			if err := NewHandler(&b, id, nil).Handle(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if strings.Count(b.String(), "\n") != 1 || !strings.HasSuffix(b.String(), "\n") {
				t.Errorf("not one line: %q", b.String())
			}
			want := maps.Clone(base)
			maps.Copy(want, tt.want)
			if diff := cmp.Diff(want, decode(t, b.Bytes())); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTime(t *testing.T) {
	var b bytes.Buffer
	slog.New(NewHandler(&b, id, nil)).Info("m")
	if _, err := time.Parse(time.RFC3339Nano, decode(t, b.Bytes())["ts"]); err != nil {
		t.Error(err)
	}
}

func TestLevel(t *testing.T) {
	var b bytes.Buffer
	var level slog.LevelVar
	log := slog.New(NewHandler(&b, id, &level))
	log.Debug("no")
	level.Set(slog.LevelDebug)
	log.Debug("yes")
	if got := b.String(); strings.Contains(got, "no\"") || !strings.Contains(got, "yes") {
		t.Error(got)
	}
}

// TestSlogtest holds the handler to the rules for all of them; groups are unfolded for it.
func TestSlogtest(t *testing.T) {
	var b bytes.Buffer
	slogtest.Run(t, func(*testing.T) slog.Handler {
		b.Reset()
		return NewHandler(&b, id, nil)
	}, func(t *testing.T) map[string]any {
		got := map[string]any{}
		for k, v := range decode(t, b.Bytes()) {
			switch k {
			case "ts":
				k = slog.TimeKey
			case "source":
				k = "component" // slogtest takes it for slog.SourceKey
			}
			parts := strings.Split(k, ".")
			m := got
			for _, p := range parts[:len(parts)-1] {
				if m[p] == nil {
					m[p] = map[string]any{}
				}
				m = m[p].(map[string]any)
			}
			m[parts[len(parts)-1]] = v
		}
		return got
	})
}

// serve serves f on a unix socket until the test ends, and returns its address.
func serve(t *testing.T, f *Fanout) string {
	t.Helper()
	address := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return address
}

func dial(t *testing.T, address string) *bufio.Reader {
	t.Helper()
	c, err := net.Dial("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return bufio.NewReaderSize(c, 4096)
}

func expect(t *testing.T, r *bufio.Reader, want ...string) {
	t.Helper()
	for _, w := range want {
		got, err := r.ReadString('\n')
		if err != nil || got != w+"\n" {
			t.Fatalf("got %q, %v; want %q", got, err, w)
		}
	}
}

func TestReadersGetWhatIsKeptAndWhatComes(t *testing.T) {
	f := NewFanout(id, 3*(1+1+lineCost))
	for _, line := range []string{"1\n", "2\n", "3", "4\n"} {
		if n, err := f.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	address := serve(t, f)
	a, b := dial(t, address), dial(t, address)
	expect(t, a, "2", "3", "4")
	expect(t, b, "2", "3", "4")
	_, _ = f.Write([]byte("5"))
	expect(t, a, "5")
	expect(t, b, "5")
}

// A reader that does not read delays nobody, costs no memory, and is told later what it missed.
func TestSlowReader(t *testing.T) {
	const limit = 64 << 10
	f := NewFanout(id, limit)
	address := serve(t, f)
	slow, fast := dial(t, address), dial(t, address)
	_, _ = f.Write([]byte("first"))
	expect(t, slow, "first")
	expect(t, fast, "first")
	line := strings.Repeat("x", 1000)
	const n = 4000
	for i := range n {
		_, _ = fmt.Fprintf(f, "%s %d", line, i)
		expect(t, fast, fmt.Sprintf("%s %d", line, i))
	}
	_, _ = f.Write([]byte("last"))
	if f.size > limit || len(f.lines) > limit/len(line) {
		t.Errorf("keeps %d bytes, %d lines", f.size, len(f.lines))
	}
	got, dropped := 0, 0
	for {
		s, err := slow.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if s == "last\n" {
			break
		}
		if !strings.HasPrefix(s, "{") {
			got++
			continue
		}
		note := decode(t, []byte(s))
		d, err := strconv.Atoi(note["dropped"])
		if err != nil || note["level"] != "WARN" || note["name"] != id.Name {
			t.Fatalf("note %q", s)
		}
		dropped += d
	}
	if dropped == 0 || got+dropped != n {
		t.Errorf("%d lines and %d dropped, want %d in all", got, dropped, n)
	}
}

func TestLongLine(t *testing.T) {
	f := NewFanout(id, 1<<20)
	_, _ = f.Write(bytes.Repeat([]byte("x"), maxLine+1))
	s, err := dial(t, serve(t, f)).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if got := decode(t, []byte(s))["bytes"]; got != strconv.Itoa(maxLine+1) {
		t.Errorf("bytes %q", got)
	}
}

func TestOldestReaderGivesWay(t *testing.T) {
	f := NewFanout(id, 1<<20)
	_, _ = f.Write([]byte("1"))
	address := serve(t, f)
	var readers []*bufio.Reader
	for range maxReaders + 1 {
		r := dial(t, address)
		expect(t, r, "1")
		readers = append(readers, r)
	}
	if _, err := readers[0].ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the oldest: %v", err)
	}
	_, _ = f.Write([]byte("2"))
	for _, r := range readers[1:] {
		expect(t, r, "2")
	}
}

// A reader that never reads does not keep Serve from ending.
func TestServeEnds(t *testing.T) {
	f := NewFanout(id, 8<<20)
	client, server := net.Pipe()
	defer client.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Serve(ctx, &pipeListener{conns: []net.Conn{server}, closed: make(chan struct{})}) }()
	_, _ = f.Write([]byte("x"))
	if _, err := client.Read(make([]byte, 1)); err != nil { // of "x\n": the write of the rest waits
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	broken := &pipeListener{closed: make(chan struct{})}
	_ = broken.Close()
	if err := f.Serve(t.Context(), broken); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed listener: %v", err)
	}
}

type pipeListener struct {
	conns  []net.Conn
	failed bool
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	if !l.failed {
		l.failed = true
		select {
		case <-l.closed:
		default:
			return nil, errors.New("too many open files")
		}
	}
	if len(l.conns) > 0 {
		c := l.conns[0]
		l.conns = l.conns[1:]
		return c, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *pipeListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (*pipeListener) Addr() net.Addr { return &net.UnixAddr{} }
