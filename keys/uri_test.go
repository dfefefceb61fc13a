// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package keys

import (
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	for uri, want := range map[string]Resource{
		"kbs:///default/test-key/1":  {"default", "test-key", "1"},
		"kbs:///a_b/C-d/v1.2.3":      {"a_b", "C-d", "v1.2.3"},
		"kbs:///default/image-kek/-": {"default", "image-kek", "-"},
	} {
		got, err := ParseURI(uri)
		if err != nil || got != want {
			t.Errorf("ParseURI(%q) = %v, %v; want %v", uri, got, err, want)
		}
		if got.String() != uri {
			t.Errorf("%q is written back as %q", uri, got)
		}
	}
	for _, uri := range []string{
		"", "kbs:///", "kbs:///a/b", "kbs:///a/b/c/d", "kbs:///a//c", "kbs:///a/b/", "kbs://host/a/b/c", "kbs:/a/b/c",
		"kbs:///a/../c", "kbs:///../../etc", "kbs:///a/.b/c", "kbs:///a/b/c?x=1", "kbs:///a/b/c#f", "kbs:///a/b/%63",
		"kbs:///a/b/c\x00", "kbs:///a/b/c ", "KBS:///a/b/c", "file:///a/b/c", "kbs:///ä/b/c",
		"kbs:///a/b/" + strings.Repeat("c", MaxURISize),
	} {
		if got, err := ParseURI(uri); err == nil {
			t.Errorf("ParseURI(%q) = %v, want an error", uri, got)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("kbs:///default/test-key/1")
	f.Add("kbs:///a/../c")
	f.Fuzz(func(t *testing.T, uri string) {
		r, err := ParseURI(uri)
		if err != nil {
			return
		}
		if r.String() != uri {
			t.Fatalf("%q has a second spelling %q", uri, r)
		}
		if strings.Contains(uri, "..") && (r.Repository == ".." || r.Type == ".." || r.Tag == "..") {
			t.Fatalf("%q climbs", uri)
		}
	})
}
