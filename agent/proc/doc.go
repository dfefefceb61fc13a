// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package proc is the only package that starts child processes and that waits for them.
//
// It never waits for "any child": a blanket wait steals the exit status of children that somebody else (os/exec, the
// OCI runtime driver) is waiting for. Every child is waited for by its own pid. Processes that were orphaned and
// handed to the agent without anybody having claimed them are swept up after a while, see Reaper.
package proc
