// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package logport

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxValue bounds one value of a line in bytes, before it is escaped.
	maxValue = 8 << 10
	// subsystemKey is the one key of an Identity that a record may set.
	subsystemKey = "subsystem"
)

// Identity says whose lines these are: a program's name ("kata-agent"), what kind of component it is ("agent") and its
// version.
type Identity struct{ Name, Source, Version string }

// handler is a slog.Handler. A handler made by WithAttrs or WithGroup shares the lock and the writer of the first.
type handler struct {
	mu       *sync.Mutex
	w        io.Writer
	level    slog.Leveler
	identity []field
	attrs    []field
	prefix   string // the open groups, each with a dot behind it
}

type field struct{ key, value string }

// NewHandler returns a slog.Handler that writes each record to w as one line, in one call of Write. Groups become
// prefixes ("group.key"). The attribute "container" becomes "container-id", where kata-log-parser looks for it;
// "subsystem" is "root" unless given; an attribute with any other key of the format gets the prefix "field.". A nil
// level is slog.LevelInfo.
func NewHandler(w io.Writer, id Identity, level slog.Leveler) slog.Handler {
	if level == nil {
		level = slog.LevelInfo
	}
	return &handler{mu: new(sync.Mutex), w: w, level: level, identity: id.fields()}
}

func (id Identity) fields() []field {
	return []field{{"pid", strconv.Itoa(os.Getpid())}, {"name", id.Name}, {"source", id.Source}, {"version", id.Version}}
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = slices.Clip(c.attrs)
	for _, a := range attrs {
		c.attrs = appendAttr(c.attrs, h.prefix, a)
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "."
	return &c
}

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	line := h.line(r)
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(line)
	return err
}

func (h *handler) line(r slog.Record) []byte {
	fields := make([]field, 0, 4+len(h.identity)+len(h.attrs)+r.NumAttrs())
	fields = append(fields, field{"msg", r.Message}, field{"level", levelName(r.Level)})
	if !r.Time.IsZero() {
		fields = append(fields, field{"ts", r.Time.Format(time.RFC3339Nano)})
	}
	fields = append(append(fields, h.identity...), field{subsystemKey, "root"})
	fields = append(fields, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		fields = appendAttr(fields, h.prefix, a)
		return true
	})
	return encode(fields)
}

// appendAttr flattens a, whose key is to get prefix.
func appendAttr(fields []field, prefix string, a slog.Attr) []field {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range v.Group() {
			fields = appendAttr(fields, prefix, member)
		}
		return fields
	}
	if a.Equal(slog.Attr{}) {
		return fields
	}
	return append(fields, field{key(prefix + a.Key), text(v)})
}

// key keeps an attribute from passing for something that the handler says.
func key(k string) string {
	switch k {
	case "msg", "level", "ts", "pid", "name", "source", "version":
		return "field." + k
	case "container":
		return "container-id"
	default:
		return k
	}
}

func text(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().Format(time.RFC3339Nano)
	case slog.KindAny:
		return fmt.Sprint(v.Any())
	default:
		return v.String()
	}
}

// levelName is the short name that slog_json gives a level.
func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelDebug:
		return "TRCE"
	case l < slog.LevelInfo:
		return "DEBG"
	case l < slog.LevelWarn:
		return "INFO"
	case l < slog.LevelError:
		return "WARN"
	case l < slog.LevelError+4:
		return "ERRO"
	default:
		return "CRIT"
	}
}

// encode writes an object and a newline. Of the fields with the same key the last one counts.
func encode(fields []field) []byte {
	last := make(map[string]int, len(fields))
	for i, f := range fields {
		last[f.key] = i
	}
	b := bytes.NewBuffer(make([]byte, 0, 512))
	b.WriteByte('{')
	for i, f := range fields {
		if last[f.key] != i {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		writeString(b, f.key)
		b.WriteByte(':')
		writeString(b, f.value)
	}
	b.WriteString("}\n")
	return b.Bytes()
}

func writeString(b *bytes.Buffer, s string) {
	if len(s) > maxValue {
		s = strings.ToValidUTF8(s[:maxValue], "") + "..."
	}
	quoted, err := json.Marshal(s)
	if err != nil { // a string cannot fail
		quoted = []byte(`""`)
	}
	b.Write(quoted)
}
