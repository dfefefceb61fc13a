// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sign

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// Registries that are named by an IPv6 address have scopes like others, but no signatures.
func TestAddresses(t *testing.T) {
	t.Parallel()
	d := digest.FromString("manifest")
	scope := func(s string) string {
		return `{"default":[{"type":"reject"}],"transports":{"docker":{"` + s + `":[{"type":"insecureAcceptAnything"}]}}}`
	}
	for name, row := range map[string]struct{ policy, ref, want string }{
		"default":         {`{"default":[{"type":"insecureAcceptAnything"}]}`, "[::1]:5000/a/b:1", ""},
		"host":            {scope("[::1]:5000"), "[::1]:5000/a/b:1", ""},
		"another port":    {scope("[::1]:5001"), "[::1]:5000/a/b:1", "rejects every image"},
		"namespace":       {scope("[::1]:5000/a"), "[::1]:5000/a/b:1", ""},
		"repository":      {scope("[::1]:5000/a/b"), "[::1]:5000/a/b@" + d.String(), ""},
		"tag":             {scope("[::1]:5000/a/b:1"), "[::1]:5000/a/b:1", ""},
		"another tag":     {scope("[::1]:5000/a/b:1"), "[::1]:5000/a/b:2", "rejects every image"},
		"digest":          {scope("[::1]/a@" + d.String()), "[::1]/a@" + d.String(), ""},
		"tag and digest":  {scope("[::1]/a@" + d.String()), "[::1]/a:1@" + d.String(), ""},
		"another digest":  {scope("[::1]"), "[::1]/a@" + digest.FromString("x").String(), "the manifest has digest"},
		"neither":         {scope("[::1]"), "[::1]/a", "neither a tag nor a digest"},
		"no reference":    {scope("[::1]"), "[::1/a:1", "invalid reference"},
		"no policy":       {"", "[::1]/a:1", "there is no policy"},
		"half of a name":  {scope("[::1]/a"), "[::1]/ab:1", "rejects every image"},
		"empty scope":     {scope(""), "[::1]/a:1", ""},
		"rejected at all": {`{"default":[{"type":"reject"}]}`, "[::1]/a:1", "rejects every image"},
	} {
		p, err := New(Config{Policy: []byte(row.policy)})
		if err != nil {
			t.Fatal(err)
		}
		err = p.Check(t.Context(), row.ref, d, nil)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
	if err := (*Policy)(nil).Check(t.Context(), "[::1]/a:1", d, nil); !errors.Is(err, ErrRejected) {
		t.Errorf("no policy: %v", err)
	}
	if err := new(Policy).Check(t.Context(), "[::1]/a:1", "sha256:x", nil); err == nil || errors.Is(err, ErrRejected) {
		t.Errorf("a digest that is none: %v", err)
	}
}

func TestAddressesHaveNoSignatures(t *testing.T) {
	t.Parallel()
	r, err := parseRules([]byte(`{"default":[{"type":"sigstoreSigned","keyPath":"k"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	err = (&Policy{rules: r}).Check(t.Context(), "[::1]/a:1", digest.FromString("x"), nil)
	if !errors.Is(err, ErrRejected) || errors.Is(err, ErrUnsigned) || !strings.Contains(err.Error(), "give it a host name") {
		t.Errorf("error %v", err)
	}
	scopes, err := addressScopes("[2001:db8::1]:5000/a/b/c:1", digest.FromString("x"))
	want := []string{"[2001:db8::1]:5000/a/b/c:1", "[2001:db8::1]:5000/a/b/c", "[2001:db8::1]:5000/a/b", "[2001:db8::1]:5000/a", "[2001:db8::1]:5000"}
	if err != nil || !slices.Equal(scopes, want) {
		t.Errorf("scopes %q, %v; want %q", scopes, err, want)
	}
}
