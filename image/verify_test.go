// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/sign"
)

// Without a policy no image is used, whatever else is configured.
func TestNoPolicyRefuses(t *testing.T) {
	r := registrytest.New(t)
	addImage(t, r, "v1", build(t, r, "gzip", tarball(t, nil), nil))
	empty, err := sign.New(sign.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*sign.Policy{"nil": nil, "zero": {}, "empty": empty} {
		s, _ := service(t, r, func(c *Config) { c.Policy = p })
		err := mount(t.Context(), s, "c1", r.Reference("v1"), "/c1")
		contains(t, err, "there is no policy")
		if !errors.Is(err, sign.ErrRejected) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := r.Requests("/blobs/"); n != 0 {
		t.Errorf("%d blobs were fetched for refused images", n)
	}
}

// A policy is asked for every reference: that the same image is here under another does not count.
func TestPolicyIsAskedForEveryReference(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	desc := addImage(t, r, "v1", build(t, r, "gzip", tarball(t, map[string]string{"f": "x"}), nil))
	repository := strings.TrimSuffix(r.Reference("v1"), ":v1")
	s, m := service(t, r, func(c *Config) {
		c.Policy = policy(t, `{"default":[{"type":"reject"}],"transports":{"docker":{"`+repository+`:v1":[{"type":"insecureAcceptAnything"}]}}}`)
	})
	for _, id := range []string{"c1", "c2"} {
		got, err := s.Mount(t.Context(), id, r.Reference("v1"), "/"+id)
		if err != nil {
			t.Fatal(err)
		}
		if got != desc.Digest.String() {
			t.Errorf("digest %s, want %s", got, desc.Digest)
		}
	}
	before := r.Requests("")
	err := mount(t.Context(), s, "c3", repository+"@"+desc.Digest.String(), "/c3")
	contains(t, err, "rejects every image", desc.Digest.String())
	if n := r.Requests("") - before; n != 0 {
		t.Errorf("%d requests for an image that the policy rejects by its name", n)
	}
	if len(m.targets) != 2 {
		t.Errorf("mounted: %v", m.targets)
	}
}

func TestMeasure(t *testing.T) {
	needRoot(t)
	r := registrytest.New(t)
	desc := addImage(t, r, "v1", build(t, r, "gzip", tarball(t, map[string]string{"f": "x"}), nil))
	var got []string
	var refuse error
	s, m := service(t, r, func(c *Config) {
		c.Measure = func(_ context.Context, reference, digest string) error {
			got = append(got, reference+" "+digest)
			return refuse
		}
	})
	if err := mount(t.Context(), s, "c1", r.Reference("v1"), "/c1"); err != nil {
		t.Fatal(err)
	}
	refuse = errors.New("the log is full")
	contains(t, mount(t.Context(), s, "c2", r.Reference("v1"), "/c2"), "cannot be measured", "the log is full")
	want := r.Reference("v1") + " " + desc.Digest.String()
	if len(got) != 2 || got[0] != want || got[1] != want {
		t.Errorf("measured %q, want twice %q", got, want)
	}
	if len(m.targets) != 1 {
		t.Errorf("an image that was not measured is mounted: %v", m.targets)
	}
}
