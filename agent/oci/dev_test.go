// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Whatever a spec mounts and in which order: a container's own /dev comes after all that an image could lead into it, and its
// own /dev/pts comes last. What the host copied is still found by its number.
func TestMountsOfDev(t *testing.T) {
	const file = runDir + "/shared/containers/f"
	tmpfs := func(on string) specs.Mount { return specs.Mount{Destination: on, Type: "tmpfs"} }
	for name, test := range map[string]struct {
		in   []specs.Mount
		want []string
	}{
		"default": {nil, []string{"/proc", "/sys", "/dev", "/dev/shm", "/dev/mqueue", "/dev/pts"}},
		"none":    {[]specs.Mount{bind(file)}, []string{"/x", "/dev", "/dev/pts"}},
		"order": {
			[]specs.Mount{{Destination: "/dev/pts", Type: "devpts"}, tmpfs("/dev/x/y"), tmpfs("/dev"), bind(file), tmpfs("/developer"), tmpfs("/dev/a")},
			[]string{"/x", "/developer", "/dev", "/dev/x/y", "/dev/a", "/dev/pts"},
		},
		"twice": {[]specs.Mount{tmpfs("/dev"), bind(file), tmpfs("/dev")}, []string{"/x", "/dev", "/dev", "/dev/pts"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := valid()
			s.Mounts = test.in
			result, err := Convert(s, options())
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range result.Spec.Mounts {
				got = append(got, m.Destination)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			binds := 0
			for _, m := range test.in {
				if m.Type == "bind" {
					binds++
				}
			}
			if len(result.Binds) != binds {
				t.Errorf("files of the host: %v", result.Binds)
			}
			for _, b := range result.Binds {
				if result.Spec.Mounts[b.Mount].Source != file {
					t.Errorf("mount %d is not %s", b.Mount, file)
				}
			}
		})
	}
	o := options()
	o.Privileged = true
	s := valid()
	s.Mounts = []specs.Mount{{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind"}}}
	result, err := Convert(s, o)
	if err != nil || len(result.Spec.Mounts) != 1 {
		t.Errorf("the guest's /dev for a privileged container: %v, %v", result, err)
	}
}
