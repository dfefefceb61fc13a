// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"strings"
	"testing"
)

func TestCompareCommandLine(t *testing.T) {
	t.Parallel()
	const sealed = "console=ttysclp0 panic=-1 lockdown=confidentiality"
	for name, tc := range map[string]struct{ sealed, actual, want string }{
		"the same":         {sealed, sealed + "\n", ""},
		"no line's end":    {sealed, sealed, ""},
		"nothing sealed":   {"", "\n", "holds no command line"},
		"one more":         {sealed, sealed + " init=/bin/sh\n", `with "init=/bin/sh", which is not`},
		"one more before":  {sealed, "rdinit=/x " + sealed + "\n", `with "rdinit=/x", which is not`},
		"twice":            {sealed, sealed + " panic=-1\n", `with "panic=-1", which is not`},
		"changed":          {sealed, strings.Replace(sealed, "-1", "0", 1) + "\n", `with "panic=0", which is not`},
		"one less":         {sealed, strings.Replace(sealed, " lockdown=confidentiality", "", 1) + "\n", `without "lockdown=confidentiality"`},
		"nothing":          {sealed, "\n", `without "console=ttysclp0"`},
		"other order":      {sealed, "panic=-1 console=ttysclp0 lockdown=confidentiality\n", "another order"},
		"other spaces":     {sealed, strings.Replace(sealed, " ", "  ", 1) + "\n", "another order or form"},
		"two lines' ends":  {sealed, sealed + "\n\n", "another order or form"},
		"quotes and lines": {sealed, sealed + " a=\"b\nc\"\n", `not on the sealed`},
		"long":             {sealed, sealed + " " + strings.Repeat("x", 4000), strings.Repeat("x", 100) + `…"`},
	} {
		err := compareCommandLine(tc.sealed, tc.actual)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.want)
		}
		if err != nil && (len(err.Error()) > 300 || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %d bytes, or lines: %q", name, len(err.Error()), err)
		}
	}
}

func FuzzCompareCommandLine(f *testing.F) {
	f.Add("console=ttyS0 panic=-1", "console=ttyS0 panic=-1\n")
	f.Add("a b", "b a")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, sealed, actual string) {
		same := sealed != "" && (actual == sealed || actual == sealed+"\n")
		if err := compareCommandLine(sealed, actual); (err == nil) != same {
			t.Errorf("%q against %q: %v", sealed, actual, err)
		}
	})
}
