// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package proc is the only package that starts child processes and that waits for them.
//
// It never waits for "any child": a blanket wait steals the exit status of a child that somebody else (os/exec, the
// OCI runtime driver) is waiting for. Every child is waited for by its own pid:
//
//   - Start runs a short helper command such as the OCI runtime.
//   - Adopt waits for a process that this one did not start but has become the parent of, because it is PID 1 or a
//     child subreaper: the init process of a container, once the runtime that started it has exited.
//   - What nobody claims (orphans that a container or a helper left behind) is swept up: a zombie that stands
//     unclaimed in two sweeps at least two seconds apart is reaped and its status dropped. Clear does it at once, and
//     kills, for those that are known to be nobody's.
//
// Whoever starts something that will be adopted calls Hold before and releases it after Adopt, so that the sweeper
// leaves everything alone in between. A child started past this package, by os/exec directly, is safe only as long as
// its parent collects it within two seconds of its exit.
package proc
