// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package version names the version of the running binary.
package version

import "runtime/debug"

// Release is the version under development. A release is tagged with it.
const Release = "0.1.0-dev"

// String returns the release and, where the binary was built in a checkout, the commit.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Release
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = "+" + s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = ".dirty"
		}
	}
	return Release + revision + modified
}
