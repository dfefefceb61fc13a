// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package callers names the functions that led to a panic, for the log. Go's own traces also show the words that a
// function was called with, which may be part of a secret, and the host reads the log.
package callers

import (
	"fmt"
	"runtime"
	"strings"
)

// Names returns functions and lines, the innermost first, beginning with the caller of Names.
func Names() string {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	var b strings.Builder
	for {
		f, more := frames.Next()
		fmt.Fprintf(&b, "%s:%d ", f.Function, f.Line)
		if !more {
			return b.String()
		}
	}
}
