// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package debian

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParsePrintURIs(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	tests := []struct {
		name, out string
		want      listed
		err       string
	}{
		{name: "package", out: "'http://mirror/x_1%3a2_s390x.deb' x_1%3a2_s390x.deb 123 SHA256:" + sum + "\n", want: listed{"x_1%3a2_s390x.deb", 123, sum}},
		{name: "notices around", out: "NOTICE: 'x' is kept elsewhere\n'http://m/a.tar.gz' a.tar.gz 9 SHA256:" + sum + "\nNeed to get 9 B\n", want: listed{"a.tar.gz", 9, sum}},
		{name: "nothing", out: "Reading package lists...\n", err: "name 0 files"},
		{name: "two", out: strings.Repeat("'http://m/a' a 1 SHA256:"+sum+"\n", 2), err: "name 2 files"},
		{name: "weak hash", out: "'http://m/a' a 1 MD5Sum:00\n", err: "without sha256"},
		{name: "no hash", out: "'http://m/a' a 1\n", err: "without sha256"},
		{name: "path", out: "'http://m/a' ../a 1 SHA256:" + sum + "\n", err: `names file "../a"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parsePrintURIs(tt.out)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestCheckFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	// FIPS 180-2, appendix B.1.
	good := listed{file: "f", size: 3, sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
	if err := checkFile(path, good); err != nil {
		t.Error(err)
	}
	long, other := good, good
	long.size, other.sha256 = 4, strings.Repeat("0", 64)
	for _, want := range []listed{long, other} {
		if err := checkFile(path, want); err == nil || !strings.Contains(err.Error(), "the lists say") {
			t.Errorf("%+v: error %v", want, err)
		}
	}
}

func TestDependsNames(t *testing.T) {
	got := DependsNames("libc6 (>= 2.34), python3:any, linux-image-6.12.1+deb13-s390x (= 6.12.1-1), a | b (>> 1), c(<< 2),")
	want := []string{"libc6", "python3", "linux-image-6.12.1+deb13-s390x", "a", "c"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseFields(t *testing.T) {
	f := parseFields("Version: 1:2.3-4\nDepends: a,\n b (>= 1:2)\n")
	if f["Version"] != "1:2.3-4" || f["Depends"] != "a, b (>= 1:2)" {
		t.Errorf("got %q", f)
	}
}

func TestFirstDebian(t *testing.T) {
	const debian = "Debian"
	out := "Ubuntu Other http://u/\n" + debian + " Debian-Security http://s/\n" + debian + " " + debian + " http://d/debian/\n" + debian + " " + debian + " http://later/\n"
	if got := firstDebian(out); got != "http://d/debian/" {
		t.Errorf("got %q", got)
	}
	if got := firstDebian(""); got != "" {
		t.Errorf("got %q from nothing", got)
	}
}

func TestMirrorOverride(t *testing.T) {
	t.Setenv(MirrorEnv, "https://mirror.example/debian")
	if m, err := Mirror(t.Context()); err != nil || m != "https://mirror.example/debian" {
		t.Errorf("got %q, %v", m, err)
	}
	for _, bad := range []string{"http://m/ [trusted=yes]", "mirror", "http://m/\ndeb x"} {
		t.Setenv(MirrorEnv, bad)
		if m, err := Mirror(t.Context()); err == nil {
			t.Errorf("mirror %q accepted as %q", bad, m)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "with space"), nil); err == nil {
		t.Error("a folder that apt's options cannot carry was accepted")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "packages.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, nil); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("damaged record: %v", err)
	}
}

func TestFetchRefusesNames(t *testing.T) {
	a, err := Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range [][]string{nil, {"-oDir=/"}, {"a=1"}, {"../x"}, {"x y"}} {
		if _, err := a.Fetch(t.Context(), Suite{"trixie", "s390x"}, names...); err == nil {
			t.Errorf("names %q accepted", names)
		}
	}
	if _, err := a.Fetch(t.Context(), Suite{"../trixie", "s390x"}, "busybox"); err == nil {
		t.Error("suite ../trixie accepted")
	}
	if _, err := a.Fetch(t.Context(), Suite{"trixie", ArchSource}, "busybox"); err == nil {
		t.Error("Fetch of a source package accepted")
	}
}

// cachedArchive returns an archive that holds one package and whose lists cannot be refreshed.
func cachedArchive(t *testing.T, listsAge, checkedAge time.Duration) (*Archive, Package) {
	t.Helper()
	t.Setenv(MirrorEnv, "file:///does/not/exist")
	dir := t.TempDir()
	a, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := Suite{"trixie", "s390x"}
	p := Package{Suite: s, Name: "busybox-static", Version: "1", SHA256: "00", Path: filepath.Join(dir, "unpacked"), Checked: time.Now().Add(-checkedAge)}
	if err := os.Mkdir(p.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := a.remember(p); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(a.suiteDir(s), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.stampPath(s), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-listsAge)
	if err := os.Chtimes(a.stampPath(s), then, then); err != nil {
		t.Fatal(err)
	}
	if a, err = Open(dir, nil); err != nil { // what counts is the record on the disk
		t.Fatal(err)
	}
	return a, p
}

func TestCacheIsUsed(t *testing.T) {
	for name, tt := range map[string]struct{ lists, checked time.Duration }{
		"checked against these lists": {time.Hour, time.Minute},
		"lists cannot be refreshed":   {30 * 24 * time.Hour, 31 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			a, p := cachedArchive(t, tt.lists, tt.checked)
			got, err := a.Fetch(t.Context(), p.Suite, p.Name)
			if err != nil || len(got) != 1 || got[0].Path != p.Path {
				t.Errorf("got %+v, %v", got, err)
			}
			if _, err := a.Fetch(t.Context(), p.Suite, p.Name, "another"); err == nil {
				t.Error("a package that is not in the cache came from nowhere")
			}
		})
	}
}

func TestCacheWithoutTheFolder(t *testing.T) {
	a, p := cachedArchive(t, time.Hour, time.Minute)
	if err := os.Remove(p.Path); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Fetch(t.Context(), p.Suite, p.Name); err == nil {
		t.Errorf("got %+v though its folder is gone", got)
	}
}

func TestCancelledFetch(t *testing.T) {
	a, p := cachedArchive(t, 30*24*time.Hour, 31*24*time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Fetch(ctx, p.Suite, p.Name); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestRun(t *testing.T) {
	if out, err := run(t.Context(), time.Minute, "/", "pwd"); err != nil || out != "/\n" {
		t.Errorf("pwd: %q, %v", out, err)
	}
	if _, err := run(t.Context(), time.Minute, "", "sh", "-c", "echo one >&2; echo two >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "one; two") {
		t.Errorf("failure: %v", err)
	}
	if _, err := run(t.Context(), 10*time.Millisecond, "", "sleep", "60"); err == nil || !strings.Contains(err.Error(), "no end after 10ms") {
		t.Errorf("limit: %v", err)
	}
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "sub/to")
	for range 2 { // the second time there is something to replace
		if err := os.MkdirAll(filepath.Join(from, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := replace(from, to); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(to, "x")); err != nil {
			t.Error(err)
		}
	}
}
