// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

// What podman and skopeo would ask is what we ask, but for what we refuse.
func TestPlacesAsPodmanHasThem(t *testing.T) {
	const conf = registriesConf + `
[[registry]]
prefix = "registry.example"
location = "elsewhere.example:5000/deep/er"
[[registry.mirror]]
location = "m.example/a"

[[registry]]
prefix = "registry.example/a/b"
location = "b.example"

[[registry]]
prefix = "*.deep.wild.example"
location = "deep.example"

[[registry]]
location = "port.example:5000"
[[registry.mirror]]
location = "m.example:5000/p"
pull-from-mirror = "all"
`
	ours, err := ParseRegistries([]byte(conf), false)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	sys := &types.SystemContext{SystemRegistriesConfPath: file, SystemRegistriesConfDirPath: t.TempDir()}
	for _, name := range []string{
		"docker.io/library/busybox", "docker.io/a/b", "registry.example/x", "registry.example/a", "registry.example/a/b", "registry.example/a/bc",
		"registry.example/a/b/c/d", "registry.example/team", "registry.example/team/app", "registry.example/teams/app", "registry.example/team/secret",
		"registry.example/team/secret/x", "registry.example/team/secrets", "registry.example:5000/team/app", "a.wild.example/x", "a.b.wild.example/x/y",
		"wild.example/x", "x.deep.wild.example/y", "deep.wild.example/y", "port.example:5000/z", "port.example/z", "port.example:50000/z", "other.example/z",
	} {
		for _, suffix := range []string{":1", "@" + someDigest} {
			named, err := reference.ParseNormalizedNamed(name + suffix)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := sysregistriesv2.FindRegistry(sys, named.String())
			if err != nil {
				t.Fatal(err)
			}
			want := []string{name + suffix}
			if theirs != nil && !theirs.Blocked {
				sources, err := theirs.PullSourcesFromReference(named)
				if err != nil {
					if got, ourErr := places(t, ours, name+suffix); ourErr == nil {
						t.Errorf("%s: %q; podman: %v", name+suffix, got, err)
					}
					continue
				}
				want = nil
				for _, s := range sources {
					want = append(want, s.Reference.String())
				}
			}
			got, err := places(t, ours, name+suffix)
			if theirs != nil && theirs.Blocked {
				if !errors.Is(err, ErrBlocked) {
					t.Errorf("%s: %q, %v; want it blocked", name+suffix, got, err)
				}
				continue
			}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: %q, %v; podman has %q", name+suffix, got, err, want)
			}
		}
	}
}
