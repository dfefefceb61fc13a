// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func testStream(t *testing.T) (*stream, *os.File) {
	t.Helper()
	s, w, err := newStream(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.close()
		_ = w.Close()
	})
	return s, w
}

func write(t *testing.T, w *os.File, data string) {
	t.Helper()
	if _, err := w.WriteString(data); err != nil {
		t.Fatal(err)
	}
}

func wantRead(t *testing.T, s *stream, limit int, want string) {
	t.Helper()
	got, err := s.read(t.Context(), limit)
	if err != nil || string(got) != want {
		t.Errorf("read %q, %v; want %q", got, err, want)
	}
}

func TestStreamCut(t *testing.T) {
	for name, test := range map[string]struct {
		before, after string
		limit         int
		reads         []string
	}{
		"empty":              {"", "late", 10, []string{"", ""}},
		"what is there":      {"0123456789", "", 100, []string{"0123456789", "", ""}},
		"nothing more":       {"0123456789", "late", 100, []string{"0123456789", "", ""}},
		"piece by piece":     {"0123456789", "late", 4, []string{"0123", "4567", "89", "", ""}},
		"a piece that fills": {"01234567", "late", 4, []string{"0123", "4567", "", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			s, w := testStream(t)
			write(t, w, test.before)
			s.cutOff()
			write(t, w, test.after)
			s.cutOff() // a second time changes nothing
			for _, want := range test.reads {
				wantRead(t, s, test.limit, want)
			}
			// The agent's end is closed, so that what still writes notices.
			if _, err := w.WriteString("x"); err == nil {
				t.Error("the pipe is still open")
			}
		})
	}
}

func TestStreamCutWakesReader(t *testing.T) {
	s, _ := testStream(t)
	ended := make(chan error)
	go func() {
		data, err := s.read(t.Context(), 10)
		if err == nil && len(data) > 0 {
			err = errors.New("data out of nowhere")
		}
		ended <- err
	}()
	s.cutOff()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestStreamEnd(t *testing.T) {
	s, w := testStream(t)
	write(t, w, "abc")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	wantRead(t, s, 2, "ab")
	wantRead(t, s, 2, "c")
	wantRead(t, s, 2, "")
	s.cutOff()
	wantRead(t, s, 2, "")
}

func TestStreamReadIsBounded(t *testing.T) {
	s, w := testStream(t)
	go func() { _, _ = w.WriteString(strings.Repeat("a", 1<<20)) }()
	data, err := s.read(t.Context(), 1<<40)
	if err != nil || len(data) == 0 || len(data) > maxRead {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func FuzzMarksPause(f *testing.F) {
	f.Add(DriverImageGuestPull + `={"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}`)
	f.Add(DriverImageGuestPull + `={"metadata":{"io.kubernetes.cri-o.ContainerType":"container"}}`)
	f.Add(DriverImageGuestPull + `={}`)
	f.Add("encryption_key=ephemeral")
	f.Fuzz(func(t *testing.T, option string) {
		pause, err := marksPause([]string{option})
		if pause && (err != nil || !strings.Contains(option, "metadata") && !strings.Contains(strings.ToLower(option), "metadata") && !strings.Contains(option, `\u`)) {
			t.Errorf("%q marks a pause container: %v", option, err)
		}
	})
}
