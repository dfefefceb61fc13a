// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package agenttest has stand-ins for the parts that a sandbox works with, for tests without root, images and cgroups.
// The Runtime behaves like an OCI runtime as far as the sandbox can tell, with real processes of the test host.
package agenttest

// Hook is a function that, if not nil, is called before each operation with its name ("Create", "Mount", …) and its first argument: the
// container id, or a path or key for Kernel. An error makes the operation fail; it may block.
type Hook func(operation, what string) error

func (h Hook) call(operation, what string) error {
	if h == nil {
		return nil
	}
	return h(operation, what)
}
