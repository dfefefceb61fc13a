// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/image/internal/registrytest"
	"github.com/cloister-cc/cloister/image/store"
)

// An image of the root disk is mounted for each reference that means it, without a word to the registry or the policy,
// which refuses all. Whatever else is asked for goes the usual way, and is refused.
func TestPreseeded(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	desc := addImage(t, r, "1", build(t, r, "gzip", tarball(t, map[string]string{"f": "registry"}), nil))
	index, manifest := digest.FromString("index"), digest.FromString("manifest")
	rootfs := t.TempDir()
	var log bytes.Buffer
	var measured []string
	name := strings.TrimSuffix(r.Reference("1"), ":1")
	s, m := service(t, r, func(c *Config) {
		c.Policy, c.Log = nil, slog.New(slog.NewTextHandler(&log, nil))
		c.Measure = func(_ context.Context, ref, d string) error {
			measured = append(measured, ref+" "+d)
			return nil
		}
		c.Preseeded = []Preseeded{
			{Reference: r.Reference("1"), Digest: index.String(), Manifest: manifest.String(), Rootfs: rootfs},
			{Reference: name + "/by-digest@" + manifest.String(), Digest: manifest.String(), Manifest: manifest.String(), Rootfs: rootfs},
		}
	})
	for _, tt := range []struct {
		ref  string
		want digest.Digest // empty: not an image of the root disk
	}{
		{r.Reference("1"), index},
		{name + "@" + index.String(), index},
		{name + "@" + manifest.String(), manifest},
		{name + ":other-tag@" + manifest.String(), manifest}, // the digest counts
		{name + "/by-digest@" + manifest.String(), manifest},
		{name + "/by-digest@" + index.String(), ""},
		{name + "/by-digest:latest", ""},
		{name + ":2", ""},
		{name, ""},
		{name + "@" + desc.Digest.String(), ""},
		{"other.test/" + strings.SplitN(name, "/", 2)[1] + ":1", ""},
		{name + "/sub:1", ""},
	} {
		before := r.Requests("")
		log.Reset()
		measured = nil
		got, err := s.Mount(t.Context(), "c1", tt.ref, "/c1")
		if tt.want == "" {
			if err == nil || len(m.targets) != 0 || len(measured) != 0 {
				t.Errorf("%s: %q, %v, mounts %v", tt.ref, got, err, m.targets)
			}
			continue
		}
		if err != nil || got != tt.want.String() || !slices.Equal(m.targets["/c1"], []string{rootfs}) {
			t.Errorf("%s: %q, %v, lower folders %v", tt.ref, got, err, m.targets["/c1"])
		}
		if n := r.Requests("") - before; n != 0 {
			t.Errorf("%s: %d requests to the registry", tt.ref, n)
		}
		if !strings.Contains(log.String(), "digest="+got) || !strings.Contains(log.String(), "manifest="+manifest.String()) {
			t.Errorf("%s: log %q", tt.ref, log.String())
		}
		if len(measured) != 1 || !strings.HasSuffix(measured[0], " "+got) {
			t.Errorf("%s: measured %q", tt.ref, measured)
		}
		if _, err := s.Mount(t.Context(), "c1", tt.ref, "/c1"); !errors.Is(err, store.ErrMounted) {
			t.Errorf("%s: the same container again: %v", tt.ref, err)
		}
		if err := s.Unmount(t.Context(), "c1"); err != nil || len(m.targets) != 0 {
			t.Errorf("%s: Unmount: %v, %v", tt.ref, err, m.targets)
		}
	}
}

// Threat: the folder of an image is not there, or cannot be used. The registry would have an image of that name.
// Observable: an error, and no request.
func TestPreseededNeverFallsBack(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	addImage(t, r, "1", build(t, r, "gzip", tarball(t, map[string]string{"f": "registry"}), nil))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	for name, tt := range map[string]struct {
		rootfs         string
		mount, measure error
		want           error
	}{
		"missing":  {rootfs: filepath.Join(dir, "missing"), want: fs.ErrNotExist},
		"a file":   {rootfs: filepath.Join(dir, "file")},
		"a link":   {rootfs: filepath.Join(dir, "link")},
		"no mount": {rootfs: dir, mount: broken, want: broken},
		"measure":  {rootfs: dir, measure: broken, want: broken},
	} {
		d := digest.FromString("x").String()
		s, m := service(t, r, func(c *Config) {
			c.Preseeded = []Preseeded{{Reference: r.Reference("1"), Digest: d, Manifest: d, Rootfs: tt.rootfs}}
			c.Measure = func(context.Context, string, string) error { return tt.measure }
		})
		m.fail = tt.mount
		_, err := s.Mount(t.Context(), "c1", r.Reference("1"), "/c1")
		contains(t, err, "root disk", r.Reference("1"))
		if tt.want != nil && !errors.Is(err, tt.want) || len(m.targets) != 0 {
			t.Errorf("%s: %v, mounts %v", name, err, m.targets)
		}
	}
	if n := r.Requests(""); n != 0 {
		t.Errorf("%d requests to the registry", n)
	}
}

func TestPreseededRefuses(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x").String()
	for name, p := range map[string]Preseeded{
		"short name":    {Reference: "busybox:1", Digest: d, Manifest: d, Rootfs: "/r"},
		"not canonical": {Reference: "r.test/a", Digest: d, Manifest: d, Rootfs: "/r"},
		"no folder":     {Reference: "r.test/a:1", Digest: d, Manifest: d},
		"digest":        {Reference: "r.test/a:1", Digest: "sha256:1", Manifest: d, Rootfs: "/r"},
		"no manifest":   {Reference: "r.test/a:1", Digest: d, Rootfs: "/r"},
	} {
		s, err := New(Config{Root: filepath.Join(t.TempDir(), "i"), Preseeded: []Preseeded{p}})
		if err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
			continue
		}
		contains(t, err, "root disk")
	}
}
