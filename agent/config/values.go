// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package config

import (
	"log/slog"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// maxText bounds a textual value, in bytes.
	maxText = 4096
	// maxTimeout is the longest time-out; longer ones, which Kata takes, are cut to it.
	maxTimeout = 365 * 24 * time.Hour
)

// verdict says what became of a value.
type verdict struct {
	// refused means that the value is malformed and the setting untouched.
	refused bool
	// note is not empty if the value was taken otherwise than it reads.
	note string
}

// value knows the forms that the text of a kernel parameter or environment variable, and a TOML value as go-toml
// decodes it into any, may have.
type value interface {
	fromText(s string) verdict
	fromTOML(v any) verdict
	// want says which forms are right.
	want() string
}

// boolValue reads text as Kata does: true, false, or a number that is not 0 for true; all else is false.
type boolValue struct {
	to *bool
	// bare takes the name alone for true.
	bare bool
	// strict refuses other text, where taking it for false would turn a protection off.
	strict bool
}

func (b boolValue) want() string { return "true, false or a number" }

func (b boolValue) fromText(s string) verdict {
	switch s {
	case "true", "false":
		*b.to = s == "true"
		return verdict{}
	}
	if n, ok := number(s, math.MaxUint64); ok {
		*b.to = n != 0
		return verdict{}
	}
	if b.strict {
		return verdict{refused: true}
	}
	*b.to = false
	return verdict{note: "it is not " + b.want() + ", so it is taken for false"}
}

func (b boolValue) fromTOML(v any) verdict {
	on, ok := v.(bool)
	if ok {
		*b.to = on
	}
	return verdict{refused: !ok}
}

// flagValue is a kernel parameter without a value: its name alone turns it on. Kata takes no notice of "name=value",
// so neither does this agent, which otherwise would open a debug console where Kata opens none.
type flagValue struct{ to *bool }

func (f flagValue) want() string {
	return "the name alone on the command line, true or false in the file"
}

func (f flagValue) fromText(string) verdict {
	return verdict{note: "it is turned on by its name without a value, so this has no effect"}
}

func (f flagValue) fromTOML(v any) verdict { return boolValue{to: f.to}.fromTOML(v) }

// allValue is cgroup_no_v1, a list of controllers of the kernel; only the list "all" concerns the agent.
type allValue struct{ to *bool }

func (a allValue) want() string { return "all" }

func (a allValue) fromText(s string) verdict {
	*a.to = *a.to || s == "all"
	return verdict{}
}

func (a allValue) fromTOML(any) verdict { return verdict{refused: true} }

// levelValue is a level by one of Kata's names.
type levelValue struct{ to *slog.Level }

func (l levelValue) want() string {
	return "fatal, panic, critical, error, warn, warning, info, debug or trace"
}

func (l levelValue) fromText(s string) verdict {
	switch s {
	case "fatal", "panic", "critical":
		*l.to = levelCritical
	case "error":
		*l.to = slog.LevelError
	case "warn", "warning":
		*l.to = slog.LevelWarn
	case "info":
		*l.to = slog.LevelInfo
	case "debug":
		*l.to = slog.LevelDebug
	case "trace":
		*l.to = levelTrace
	default:
		return verdict{refused: true}
	}
	return verdict{}
}

func (l levelValue) fromTOML(v any) verdict {
	s, _ := v.(string)
	return l.fromText(s)
}

// portValue is a vsock port in the range that Kata can hold. Kata skips 0 and less on the command line.
type portValue struct{ to *uint32 }

func (p portValue) want() string { return "a port, 1 to 2147483647" }

func (p portValue) fromText(s string) verdict {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return verdict{refused: true}
	}
	return p.fromTOML(n)
}

func (p portValue) fromTOML(v any) verdict {
	n, ok := v.(int64)
	switch {
	case !ok || n > math.MaxInt32 || n < math.MinInt32:
		return verdict{refused: true}
	case n < 0:
		return verdict{note: "it is not " + p.want() + ", so it has no effect"}
	case n > 0:
		*p.to = uint32(n)
	}
	return verdict{}
}

// sizeValue is a number of bytes in the range that Kata can hold, which is also the kernel's for a pipe.
type sizeValue struct{ to *int32 }

func (z sizeValue) want() string { return "a number of bytes, 0 to 2147483647" }

func (z sizeValue) fromText(s string) verdict {
	n, ok := number(s, math.MaxInt32)
	if !ok {
		return verdict{refused: true}
	}
	return z.fromTOML(int64(n))
}

func (z sizeValue) fromTOML(v any) verdict {
	n, ok := v.(int64)
	if !ok || n < 0 || n > math.MaxInt32 {
		return verdict{refused: true}
	}
	*z.to = int32(n)
	return verdict{}
}

// timeoutValue is a number of seconds or, in TOML, also the table {secs, nanos}. As on Kata's command line, 0 keeps
// what was set: a time-out of 0 would fail whatever it bounds.
type timeoutValue struct{ to *time.Duration }

func (t timeoutValue) want() string {
	return "a number of whole seconds; in TOML also {secs = SECONDS, nanos = 0 to 999999999}"
}

func (t timeoutValue) fromText(s string) verdict {
	n, ok := number(s, math.MaxUint64)
	if !ok {
		return verdict{refused: true}
	}
	return t.set(n, 0)
}

func (t timeoutValue) fromTOML(v any) verdict {
	refused := verdict{refused: true}
	table, ok := v.(map[string]any)
	if !ok {
		table = map[string]any{"secs": v}
	}
	var secs, nanos int64
	for name, part := range table {
		n, isNumber := part.(int64)
		switch {
		case !isNumber || n < 0:
			return refused
		case name == "secs":
			secs = n
		case name == "nanos" && n < int64(time.Second):
			nanos = n
		default:
			return refused
		}
	}
	if _, ok := table["secs"]; !ok {
		return refused
	}
	return t.set(uint64(secs), nanos)
}

func (t timeoutValue) set(secs uint64, nanos int64) verdict {
	if secs == 0 && nanos == 0 {
		return verdict{note: "no time-out may be 0, so it has no effect"}
	}
	if secs >= uint64(maxTimeout/time.Second) {
		*t.to = maxTimeout
		if secs == uint64(maxTimeout/time.Second) && nanos == 0 {
			return verdict{}
		}
		return verdict{note: "it is cut to a year"}
	}
	*t.to = time.Duration(secs)*time.Second + time.Duration(nanos)
	return verdict{}
}

// textValue is any text of one line.
type textValue struct {
	to *string
	// emptyText takes empty text outside TOML, where it is always taken.
	emptyText bool
}

func (x textValue) want() string { return "printable text of at most 4096 bytes, not empty" }

func (x textValue) fromText(s string) verdict {
	if s == "" && !x.emptyText {
		return verdict{refused: true}
	}
	return x.fromTOML(s)
}

func (x textValue) fromTOML(v any) verdict {
	s, ok := v.(string)
	if !ok || !isText(s) {
		return verdict{refused: true}
	}
	*x.to = s
	return verdict{}
}

// addressValue is an address to listen on.
type addressValue struct{ to *string }

func (a addressValue) want() string { return "vsock://CID:PORT or unix://PATH" }

func (a addressValue) fromText(s string) verdict {
	if !isText(s) || !strings.HasPrefix(s, "vsock://") && !strings.HasPrefix(s, "unix://") {
		return verdict{refused: true}
	}
	*a.to = s
	return verdict{}
}

func (a addressValue) fromTOML(v any) verdict {
	s, _ := v.(string)
	return a.fromText(s)
}

// proxyValue is the URL of a proxy. It is never quoted in an error or warning, as it may hold a password.
type proxyValue struct{ to *string }

func (p proxyValue) want() string { return "the URL of a proxy: http, https, socks5 or socks5h" }

func (p proxyValue) fromText(s string) verdict {
	refused := verdict{refused: true}
	if !isText(s) {
		return refused
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return refused
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		*p.to = s
		return verdict{}
	default:
		return refused
	}
}

func (p proxyValue) fromTOML(v any) verdict {
	s, ok := v.(string)
	if ok && s == "" {
		*p.to = ""
		return verdict{}
	}
	return p.fromText(s)
}

// number reads a decimal number from 0 to limit, with or without a plus sign.
func number(s string, limit uint64) (uint64, bool) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "+"), 10, 64)
	return n, err == nil && n <= limit
}

func isText(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
