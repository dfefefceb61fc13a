// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package attest

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// replay computes the register of a log's text as a verifier does, whatever the hash.
func replay(newHash func() hash.Hash, text string) string {
	sum := func(parts ...[]byte) []byte {
		h := newHash()
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	register := make([]byte, newHash().Size())
	for line := range strings.Lines(text) {
		register = sum(register, sum([]byte(strings.TrimSuffix(line, "\n"))))
	}
	return hex.EncodeToString(register)
}

// text is a log as the attestation-agent writes it.
func text(l *Log) string {
	var b strings.Builder
	b.WriteString("INIT sha384/" + strings.Repeat("0", 96) + "\n")
	for _, e := range l.Events() {
		b.WriteString(e.String() + "\n")
	}
	return b.String()
}

func hexDigest(l *Log) string {
	d := l.Digest()
	return hex.EncodeToString(d[:])
}

// The known answers are those of the tests of trustee (deps/verifier/src/eventlog, aa_eventlog sha256) and of
// guest-components (attestation-agent/src/eventlog, test_event_digest).
func TestKnownAnswers(t *testing.T) {
	t.Parallel()
	if got := replay(sha256.New, "INIT sha256/"+strings.Repeat("0", 64)+"\ndomain event operation\ndomain event2 operation\n"); got !=
		"e3f24e31c29b371c521ead351f6fed0865695cf512cfcb0df658090217f6f678" {
		t.Errorf("the register is %s", got)
	}
	line := sha512.Sum384([]byte(Event{"domain", "operation", "content"}.String()))
	if got := hex.EncodeToString(line[:]); got != "26d944cb8d99096590252283b8c807b9508329b068703bdb7bac7eb6efe5b32fc0fadf1462662b95d2c708aa49c0bfe1" {
		t.Errorf("the digest of a line is %s", got)
	}
	l := NewLog()
	for _, e := range []Event{{"domain", "event", "operation"}, {"domain", "event2", "operation"}} {
		if err := l.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	const want = "5a6dd3b3c7eb3f0912d134aa30fab05893e91c78650af4fbce23411bc4b1d40011a2a530c1149a5bff6c5eb106b5a012"
	if got := hexDigest(l); got != want || replay(sha512.New384, text(l)) != want {
		t.Errorf("the digest is %s, as a verifier computes it %s, want %s", got, replay(sha512.New384, text(l)), want)
	}
}

const zeros = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

func TestPullImage(t *testing.T) {
	t.Parallel()
	e, err := PullImage("registry.example:5000/demo:1", zeros)
	if err != nil {
		t.Fatal(err)
	}
	if want := `github.com/confidential-containers PullImage {"image":"registry.example:5000/demo:1","digest":"` + zeros + `"}`; e.String() != want {
		t.Errorf("got %s, want %s", e, want)
	}
	for _, bad := range [][2]string{
		{"", zeros},
		{"a b", zeros},
		{"a\nb", zeros},
		{`a"b`, zeros},
		{`a\b`, zeros},
		{"ä", zeros},
		{"a\x7f", zeros},
		{strings.Repeat("a", MaxField), zeros},
		{"a", ""},
		{"a", "sha256:00"},
		{"a", strings.ToUpper(zeros)},
		{"a", zeros + "\n"},
		{"a", zeros + " "},
		{"a", `sha256:"}`},
		{"a", "md5:00000000000000000000000000000000"},
	} {
		if e, err := PullImage(bad[0], bad[1]); !errors.Is(err, ErrEvent) {
			t.Errorf("%q: %v, %v", bad, e, err)
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	t.Parallel()
	l := NewLog()
	empty := l.Digest()
	for _, e := range []Event{
		{},
		{"", "o", "c"},
		{"d", "", "c"},
		{"d", "o", ""},
		{"d d", "o", "c"},
		{"d", "o\n", "c"},
		{"d", "o", "c\nd o c"},
		{"d", "o", "c c"},
		{"d", "o", "c\r"},
		{"d", "o", "\x00"},
		{"d", "o", "\xff"},
		{"d", "o", "c\u2028"},
		{strings.Repeat("d", MaxField+1), "o", "c"},
	} {
		if err := l.Append(e); !errors.Is(err, ErrEvent) {
			t.Errorf("%q: %v", e, err)
		}
	}
	if l.Digest() != empty || len(l.Events()) != 0 {
		t.Error("what was refused is in the log")
	}
}

// The same event again changes nothing, not even in a full log; another one is refused then.
func TestFull(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{"events": "c", "bytes": strings.Repeat("c", 2000)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := NewLog()
			var err error
			n := 0
			for ; err == nil; n++ {
				for range 2 {
					err = l.Append(Event{"d", "o", fmt.Sprint(content, n)})
				}
				if n > MaxEvents {
					t.Fatal("the log has no bound")
				}
			}
			n--
			if want := map[string]int{"events": MaxEvents, "bytes": maxBytes / 2007}[name]; !errors.Is(err, ErrFull) || n < want-1 || n > want || len(l.Events()) != n {
				t.Errorf("%d events, %d in the log, want %d: %v", n, len(l.Events()), want, err)
			}
			before := l.Digest()
			if err := l.Append(Event{"d", "o", content + "0"}); err != nil {
				t.Errorf("an event that is there: %v", err)
			}
			if err := l.Append(Event{"d", "o", content + "new"}); !errors.Is(err, ErrFull) {
				t.Errorf("a new event: %v", err)
			}
			if l.Digest() != before || hexDigest(l) != replay(sha512.New384, text(l)) {
				t.Error("the digest is not that of the log")
			}
		})
	}
}

// Events are the caller's own copy.
func TestEventsAreACopy(t *testing.T) {
	t.Parallel()
	l := NewLog()
	if err := l.Append(Event{"d", "o", "c"}); err != nil {
		t.Fatal(err)
	}
	l.Events()[0].Content = "x"
	if diff := cmp.Diff([]Event{{"d", "o", "c"}}, l.Events()); diff != "" {
		t.Error(diff)
	}
}

func TestConcurrentAppends(t *testing.T) {
	t.Parallel()
	l := NewLog()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				if err := l.Append(Event{"d", "o", fmt.Sprint((i + j) % 60)}); err != nil {
					t.Error(err)
				}
				l.Digest()
			}
		})
	}
	wg.Wait()
	if n := len(l.Events()); n != 57 || hexDigest(l) != replay(sha512.New384, text(l)) {
		t.Errorf("%d events, digest %x", n, l.Digest())
	}
}

// FuzzPullImage: whatever a reference and a digest are, an event that is made of them is one line of three fields, and
// its content is JSON that says just that.
func FuzzPullImage(f *testing.F) {
	f.Add("registry.example/demo:1", zeros)
	f.Add("registry.example:5000/a/b@"+zeros, zeros)
	f.Add(`a","digest":"x`, "sha512:"+strings.Repeat("a", 128))
	f.Add("a b\nc", "sha256:")
	f.Fuzz(func(t *testing.T, reference, digest string) {
		e, err := PullImage(reference, digest)
		if err != nil {
			return
		}
		l := NewLog()
		if err := l.Append(e); err != nil {
			t.Fatal(err)
		}
		fields := strings.Split(e.String(), " ")
		if len(fields) != 3 || strings.ContainsAny(e.String(), "\r\n") {
			t.Fatalf("line %q", e)
		}
		var content struct{ Image, Digest string }
		d := json.NewDecoder(strings.NewReader(fields[2]))
		d.DisallowUnknownFields()
		if err := d.Decode(&content); err != nil || content.Image != reference || content.Digest != digest {
			t.Fatalf("content %s: %+v, %v", fields[2], content, err)
		}
		if hexDigest(l) != replay(sha512.New384, text(l)) {
			t.Fatal("the digest is not that of the log")
		}
	})
}
