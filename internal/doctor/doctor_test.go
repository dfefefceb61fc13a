// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package doctor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// good is a machine that has everything but test beds.
func good(t *testing.T) *Machine {
	t.Helper()
	return &Machine{
		CacheDir: t.TempDir(),
		LookPath: func(name string) (string, error) { return "/usr/bin/" + name, nil },
		Run:      func(context.Context, string, ...string) ([]byte, error) { return []byte("go1.26.8\n"), nil },
		Root: fstest.MapFS{
			"etc/os-release":                         {Data: []byte("ID=debian\nVERSION_ID=\"12\"\n")},
			"usr/share/s390-tools/pvimg/stage3a.bin": {Data: []byte("x")},
		},
		Free: func(string) (uint64, error) { return 100 << 30, nil },
		Now:  func() time.Time { return released.AddDate(0, 1, 0) },
	}
}

func missing(findings []Finding) string {
	var names []string
	for _, f := range findings {
		if !f.OK {
			names = append(names, f.Name)
		}
	}
	return strings.Join(names, ", ")
}

func TestGoodMachine(t *testing.T) {
	t.Parallel()
	findings := good(t).Check(t.Context(), Jobs())
	if got := missing(findings); got != "test bed of s390x, test bed of amd64" {
		t.Errorf("missing: %s", got)
	}
	for _, f := range findings {
		if f.Detail == "" || len(f.Jobs) == 0 || f.OK != (f.Mend == "") {
			t.Errorf("finding %+v", f)
		}
	}
}

func TestWhatIsMissing(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	for want, change := range map[string]func(*Machine){
		"clock":                         func(m *Machine) { m.Now = func() time.Time { return time.Unix(0, 0) } },
		"boot code of Secure Execution": func(m *Machine) { delete(m.Root.(fstest.MapFS), "usr/share/s390-tools/pvimg/stage3a.bin") },
		"Debian": func(m *Machine) {
			m.Root.(fstest.MapFS)["etc/os-release"].Data = []byte("ID=debian\nVERSION_ID=\"13\"\n")
		},
		"apt-get, git, make": func(m *Machine) { m.LookPath = func(string) (string, error) { return "", gone } },
		"disk space":         func(m *Machine) { m.Free = func(string) (uint64, error) { return wanted - 1, nil } },
		"Go": func(m *Machine) {
			m.Run = func(context.Context, string, ...string) ([]byte, error) { return []byte("go1.25.3"), nil }
		},
		"root":                            func(m *Machine) { m.UID = 1000 },
		"test bed of s390x (and nothing)": func(*Machine) {},
	} {
		m := good(t)
		change(m)
		got := missing(m.Check(t.Context(), Jobs()))
		got = strings.TrimPrefix(strings.ReplaceAll(strings.ReplaceAll(", "+got, ", test bed of s390x", ""), ", test bed of amd64", ""), ", ")
		if want, _, nothing := strings.Cut(want, " (and"); !nothing && got != want || nothing && got != "" {
			t.Errorf("missing: %q, want %q", got, want)
		}
	}
}

func TestJobs(t *testing.T) {
	t.Parallel()
	m := good(t)
	if got := missing(m.Check(t.Context(), []string{JobBuild, JobSeal})); got != "" {
		t.Errorf("to build and seal: %s", got)
	}
	if got := m.Check(t.Context(), nil); len(got) != 0 {
		t.Errorf("for nothing: %v", got)
	}
}

// The machine of the test itself: nothing may fail in an unexpected way.
func TestRealMachine(t *testing.T) {
	t.Parallel()
	for _, f := range New("").Check(t.Context(), Jobs()) {
		if f.Detail == "" {
			t.Errorf("finding %+v", f)
		}
	}
}
