// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package mount

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestPlan(t *testing.T) {
	for name, tc := range map[string]struct {
		source, fstype string
		options        []string
		want           []call
		err            string
	}{
		"proc": {
			"proc", "proc",
			[]string{"nosuid", "nodev", "noexec"},
			[]call{{"proc", "/t", "proc", 0x2 | 0x4 | 0x8, ""}},
			"",
		},
		"data": {
			"tmpfs", "tmpfs",
			[]string{"mode=755", "nosuid", "size=10m"},
			[]call{{"tmpfs", "/t", "tmpfs", 0x2, "mode=755,size=10m"}},
			"",
		},
		"later wins": {
			"/dev/x", "erofs",
			[]string{"ro", "rw", "ro", "noatime", "strictatime", "nodev", "dev"},
			[]call{{"/dev/x", "/t", "erofs", 0x1 | 0x1000000, ""}},
			"",
		},
		"defaults": {"a", "tmpfs", []string{"defaults"}, []call{{"a", "/t", "tmpfs", 0, ""}}, ""},
		"bind":     {"/a", "", []string{"bind"}, []call{{"/a", "/t", "", 0x1000, ""}}, ""},
		"bind rw":  {"/a", "bind", []string{"rbind", "rw"}, []call{{"/a", "/t", "", 0x1000 | 0x4000, ""}}, ""},
		"bind ro": {
			"/a", "none",
			[]string{"rbind", "ro", "nosuid"},
			[]call{{"/a", "/t", "", 0x1000 | 0x4000, ""}, {"", "/t", "", 0x1000 | 0x20 | 0x1 | 0x2, ""}},
			"",
		},
		"bind ro private": {
			"/a", "",
			[]string{"rprivate", "bind", "ro"},
			[]call{{"/a", "/t", "", 0x1000, ""}, {"", "/t", "", 0x1000 | 0x20 | 0x1, ""}, {"", "/t", "", 1<<18 | 0x4000, ""}},
			"",
		},
		"propagation only": {"none", "", []string{"rslave"}, []call{{"", "/t", "", 1<<19 | 0x4000, ""}}, ""},
		"rshared":          {"none", "", []string{"rshared"}, []call{{"", "/t", "", 1<<20 | 0x4000, ""}}, ""},
		"remount":          {"", "", []string{"remount", "ro"}, []call{{"", "/t", "", 0x20 | 0x1, ""}}, ""},
		"remount data": {
			"x", "tmpfs",
			[]string{"remount", "size=1m"},
			[]call{{"x", "/t", "tmpfs", 0x20, "size=1m"}},
			"",
		},
		"bind with data": {"/a", "", []string{"bind", "mode=755"}, nil, "takes no data"},
		"nothing":        {"/a", "", nil, nil, "neither a file system type"},
		"no type":        {"/a", "", []string{"ro"}, nil, "no file system type"},
		"empty option":   {"/a", "tmpfs", []string{""}, nil, "mount option"},
		"zero byte":      {"/a", "tmpfs", []string{"a\x00b"}, nil, "mount option"},
		"long":           {"/a", "tmpfs", []string{strings.Repeat("x", 4096)}, nil, "4096 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := plan(tc.source, "/t", tc.fstype, tc.options)
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("error %v, want %q", err, tc.err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(call{})); diff != "" {
				t.Errorf("calls differ (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := plan("a", "", "tmpfs", nil); err == nil {
		t.Error("a mount without a target")
	}
}

// TestFlagNumbers holds the constants against the numbers of the kernel's include/uapi/linux/mount.h, which the plans
// above are written in.
func TestFlagNumbers(t *testing.T) {
	for name, want := range map[string]uintptr{
		"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "remount": 32, "dirsync": 128, "nosymfollow": 256,
		"noatime": 1024, "nodiratime": 2048, "bind": 4096, "rbind": 4096 | 16384, "silent": 32768,
		"relatime": 1 << 21, "strictatime": 1 << 24, "lazytime": 1 << 25,
	} {
		if f, ok := flagOf(name); !ok || f.set != want {
			t.Errorf("%s is %#x, want %#x", name, f.set, want)
		}
	}
	for name, want := range map[string]uintptr{
		"unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20,
		"runbindable": 1<<17 | unix.MS_REC, "rprivate": 1<<18 | unix.MS_REC, "rslave": 1<<19 | unix.MS_REC, "rshared": 1<<20 | unix.MS_REC,
	} {
		if f, ok := propagationOf(name); !ok || f != want {
			t.Errorf("%s is %#x, want %#x", name, f, want)
		}
	}
}

func TestOverlayData(t *testing.T) {
	long := "/" + strings.Repeat("l", 100)
	for name, tc := range map[string]struct {
		lower       []string
		upper, work string
		want, err   string
	}{
		"one layer":    {[]string{"/l"}, "/u", "/w", "lowerdir=/l,upperdir=/u,workdir=/w", ""},
		"layers":       {[]string{"/c", "/b", "/a"}, "/u", "/w", "lowerdir=/c:/b:/a,upperdir=/u,workdir=/w", ""},
		"read-only":    {[]string{"/b", "/a"}, "", "", "lowerdir=/b:/a", ""},
		"special":      {[]string{`/a:b,c\d`}, "/u:,", `/w\`, `lowerdir=/a\:b\,c\\d,upperdir=/u:\,,workdir=/w\\`, ""},
		"no layer":     {nil, "/u", "/w", "", "0 lower layers"},
		"one only":     {[]string{"/a"}, "", "", "", "1 lower layers"},
		"no work":      {[]string{"/a"}, "/u", "", "", "belong together"},
		"relative":     {[]string{"a"}, "/u", "/w", "", "not an absolute path"},
		"empty":        {[]string{""}, "/u", "/w", "", "not an absolute path"},
		"upper":        {[]string{"/a"}, "u", "/w", "", "not an absolute path"},
		"zero byte":    {[]string{"/a\x00"}, "/u", "/w", "", "not an absolute path"},
		"many layers":  {slicesRepeat(long, 40), "/u", "/w", "", "use shorter ones"},
		"inject upper": {[]string{"/a,upperdir=/x"}, "", "", "", "1 lower layers"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := overlayData(tc.lower, tc.upper, tc.work)
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("error %v, want %q", err, tc.err)
			}
			if got != tc.want {
				t.Errorf("data %s, want %s", got, tc.want)
			}
		})
	}
}

func slicesRepeat(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

// FuzzParse checks that no option can smuggle in a second one: data is the unknown options, in order.
func FuzzParse(f *testing.F) {
	f.Add("ro", "mode=755")
	f.Add("bind", "rprivate")
	f.Add("", "x,y")
	f.Fuzz(func(t *testing.T, a, b string) {
		p, err := parse([]string{a, b})
		if err != nil {
			return
		}
		if len(p.data) > maxData || strings.ContainsRune(p.data, 0) {
			t.Errorf("data %q", p.data)
		}
		if p.data != "" && p.data != a && p.data != b && p.data != a+","+b {
			t.Errorf("options %q, %q became data %q", a, b, p.data)
		}
	})
}
