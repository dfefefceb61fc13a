// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package volume

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlan(t *testing.T) {
	const mem, local, huge = "/run/k/sandbox/ephemeral/v", "/run/k/shared/containers/c1/rootfs/local/v", "pagesize=2097152,size=524288000"
	for name, tc := range map[string]struct {
		s    Storage
		want plan
		err  error
	}{
		"tmpfs": {
			Storage{Driver: "ephemeral", FSType: "tmpfs", MountPoint: mem, Options: []string{"size=50%", "nr_inodes=1k", "mode=01777", "uid=1,gid=2", "noexec", "ro", "fsgid=3"}},
			plan{
				driver: "ephemeral", rel: "sandbox/ephemeral/v", fstype: "tmpfs", flags: []string{"noexec", "ro"}, gid: new(uint32(3)), mode: new(uint32(0o1777)),
				data: []string{"size=50%", "nr_inodes=1k", "mode=01777", "uid=1", "gid=2"},
			},
			nil,
		},
		"huge": {
			Storage{Driver: "ephemeral", FSType: "hugetlbfs", MountPoint: mem, Options: []string{huge}},
			plan{
				driver: "ephemeral", rel: "sandbox/ephemeral/v", fstype: "hugetlbfs", data: strings.Split(huge, ","), pageSize: 2 << 20, size: 524288000,
			},
			nil,
		},
		"local": {
			Storage{Driver: "local", FSType: "local", MountPoint: local, Options: []string{"mode=0777"}, Group: &FSGroup{ID: 9}},
			plan{
				driver: "local", rel: "shared/containers/c1/rootfs/local/v", data: []string{"mode=0777"}, mode: new(uint32(0o777)), group: &FSGroup{ID: 9},
			},
			nil,
		},
		"driver":        {Storage{Driver: "blk", MountPoint: mem}, plan{}, ErrUnsupported},
		"no driver":     {Storage{MountPoint: mem}, plan{}, ErrUnsupported},
		"ext4":          {Storage{Driver: "ephemeral", FSType: "ext4", MountPoint: mem}, plan{}, ErrInvalid},
		"no type":       {Storage{Driver: "ephemeral", MountPoint: mem}, plan{}, ErrInvalid},
		"group":         {Storage{Driver: "local", MountPoint: local, Group: &FSGroup{ID: 1<<32 - 1}}, plan{}, ErrInvalid},
		"no page size":  {Storage{Driver: "ephemeral", FSType: "hugetlbfs", MountPoint: mem, Options: []string{"size=5"}}, plan{}, ErrInvalid},
		"no size":       {Storage{Driver: "ephemeral", FSType: "hugetlbfs", MountPoint: mem, Options: []string{"pagesize=2097152,size="}}, plan{}, ErrInvalid},
		"no page":       {Storage{Driver: "ephemeral", FSType: "hugetlbfs", MountPoint: mem, Options: []string{"pagesize=2097152,size=2097151"}}, plan{}, ErrInvalid},
		"odd page size": {Storage{Driver: "ephemeral", FSType: "hugetlbfs", MountPoint: mem, Options: []string{"pagesize=1,size=9"}}, plan{}, ErrInvalid},
		"many options":  {Storage{Driver: "ephemeral", FSType: "tmpfs", MountPoint: mem, Options: []string{strings.Repeat("ro,", 64) + "ro"}}, plan{}, ErrInvalid},
		"many strings":  {Storage{Driver: "ephemeral", FSType: "tmpfs", MountPoint: mem, Options: strings.Split(strings.Repeat("ro ", 99)+"ro", " ")}, plan{}, ErrInvalid},
		"long option":   {Storage{Driver: "ephemeral", FSType: "tmpfs", MountPoint: mem, Options: []string{strings.Repeat("r", 1025)}}, plan{}, ErrInvalid},
	} {
		got, err := newPlan("/run/k", tc.s)
		if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
			t.Errorf("%s: %v, want %v", name, err, tc.err)
		}
		if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(plan{})); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", name, diff)
		}
	}
}

func TestBadOptions(t *testing.T) {
	for _, option := range []string{
		"", "bind", "remount", "rbind", "move", "rshared", "size", "size=", "size=-1", "size=1x", "size=101%%", "size=1m\n", "mode=8", "mode=0o7", "mode=77777", "mode=-1",
		"mode", "uid=-1", "uid=4294967295", "uid=99999999999", "gid=4294967296", "fsgid", "fsgid=", "fsgid=x", "fsgid=-1", "fsgid=4294967295", "ro=1", "mpol=bind", "huge=always",
		"lowerdir=/", "nr_inodes=50%", "ro,bind", "ro,", ",", "RO", " ro", "context=x", "size=1\x00",
	} {
		if p, err := newPlan("/run/k", Storage{Driver: "ephemeral", FSType: "tmpfs", MountPoint: "/run/k/sandbox/shm", Options: []string{option}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("option %q: %+v, %v", option, p, err)
		}
	}
	for _, option := range []string{"ro", "nosuid", "size=1m", "uid=1"} {
		if _, err := newPlan("/run/k", Storage{Driver: "local", MountPoint: "/run/k/shared/containers/c1/local/v", Options: []string{option}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("option %q of a folder: %v", option, err)
		}
	}
}

func TestPlaces(t *testing.T) {
	for place, drivers := range map[string]string{
		"/run/k/sandbox/shm":                                      "ephemeral",
		"/run/k/sandbox/ephemeral/v":                              "ephemeral",
		"/run/k/sandbox/ephemeral/new\nline":                      "ephemeral",
		"/run/k/sandbox/ephemeral/..data":                         "ephemeral",
		"/run/k/shared/containers/c1/rootfs/local/v":              "local",
		"/run/k/shared/containers/c1/local/v":                     "local",
		"sandbox/shm":                                             "",
		"":                                                        "",
		"/":                                                       "",
		"/etc":                                                    "",
		"/run/k":                                                  "",
		"/run/k/":                                                 "",
		"/run/k/sandbox":                                          "",
		"/run/k/sandbox/shm/":                                     "",
		"/run/k/sandbox/shm/x":                                    "",
		"/run/k/sandbox/ephemeral":                                "",
		"/run/k/sandbox/ephemeral/":                               "",
		"/run/k/sandbox/ephemeral/.":                              "",
		"/run/k/sandbox/ephemeral/..":                             "",
		"/run/k/sandbox/ephemeral/../shm":                         "",
		"/run/k/sandbox/ephemeral/a/b":                            "",
		"/run/k/sandbox/ephemeral/a\x00":                          "",
		"/run/k/sandbox/resolv.conf":                              "",
		"/run/k/sandbox/storage/x":                                "",
		"/run/k//sandbox/shm":                                     "",
		"/run/kx/sandbox/shm":                                     "",
		"run/k/sandbox/shm":                                       "",
		"/run/k/c1":                                               "",
		"/run/k/c1/rootfs":                                        "",
		"/run/k/c1/rootfs/local/v":                                "",
		"/run/k/shared/containers":                                "",
		"/run/k/shared/containers/c1":                             "",
		"/run/k/shared/containers/c1/rootfs":                      "",
		"/run/k/shared/containers/c1/rootfs/local":                "",
		"/run/k/shared/containers/c1/rootfs/etc/v":                "",
		"/run/k/shared/containers/c1/rootfs/local/../../x":        "",
		"/run/k/shared/containers/.c/local/v":                     "",
		"/run/k/shared/containers/c1/rootfs/rootfs/local/v":       "",
		"/run/k/sandbox/ephemeral/" + strings.Repeat("n", 256):    "",
		"/run/k/shared/containers/c1/local/v/w":                   "",
		"/run/k/shared/containers/../containers/c1/local/v":       "",
		"/run/k/shared/containers/" + strings.Repeat("c", 4096):   "",
		"/run/k/sandbox/shm\n":                                    "",
		"\n/run/k/sandbox/shm":                                    "",
		"/run/k/shared/containers/c1\n/local/v":                   "",
		"/run/k/shared/containers/c1/rootfs/local/v/../../../../": "",
	} {
		for _, driver := range []string{"ephemeral", "local"} {
			_, err := newPlan("/run/k", Storage{Driver: driver, FSType: "tmpfs", MountPoint: place})
			if ok := driver == drivers; (err == nil) != ok || !ok && !errors.Is(err, ErrInvalid) {
				t.Errorf("%s at %q: %v", driver, place, err)
			}
		}
	}
}

// FuzzPlan checks that whatever passes has a clean mount point at one of the places, and options that smuggle nothing in.
func FuzzPlan(f *testing.F) {
	f.Add("ephemeral", "tmpfs", "/run/k/sandbox/shm", "noexec,nosuid", "size=67108864")
	f.Add("ephemeral", "hugetlbfs", "/run/k/sandbox/ephemeral/v", "pagesize=2097152,size=4194304", "fsgid=4")
	f.Add("local", "local", "/run/k/shared/containers/c1/rootfs/local/v", "mode=0777", "fsgid=4")
	f.Add("ephemeral", "tmpfs", "/run/k/sandbox/ephemeral/../../../etc", "remount", "bind")
	f.Fuzz(func(t *testing.T, driver, fstype, mountPoint, a, b string) {
		p, err := newPlan("/run/k", Storage{Driver: driver, FSType: fstype, MountPoint: mountPoint, Options: []string{a, b}})
		if err != nil {
			if diff := cmp.Diff(plan{}, p, cmp.AllowUnexported(plan{})); diff != "" {
				t.Errorf("a plan beside an error: %s", diff)
			}
			return
		}
		if path.Join("/run/k", p.rel) != mountPoint || !strings.HasPrefix(p.rel, "sandbox/") && !strings.Contains(p.rel, "/local/") {
			t.Errorf("place %q of %q", p.rel, mountPoint)
		}
		for _, option := range append(p.flags, p.data...) {
			key, _, _ := strings.Cut(option, "=")
			if strings.ContainsAny(option, ", \n\x00") || formsOf(p.fstype)[key] == nil && !isFlag(option) {
				t.Errorf("option %q", option)
			}
		}
		if p.mode != nil && *p.mode > 0o7777 || p.fstype == fsHuge && p.size < p.pageSize {
			t.Errorf("plan %+v", p)
		}
	})
}
