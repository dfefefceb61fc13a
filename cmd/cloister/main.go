// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Command cloister is the tool of the build host and of the operator: it builds guests and encrypted images, and talks
// to running guests. The bodies of its commands live in packages; here are flags and output alone.
//
// It exits with 0 on success, 2 on wrong usage, the status that a command asks for (that of a process run in a guest),
// and 1 on every other error.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		report(os.Stderr, err)
	}
	os.Exit(exitCode(err))
}
