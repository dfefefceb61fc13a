// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Command demo runs the main job of Cloister on real parts and says what it does: it is a user of the cloister command
// and of nothing else. Its work folder stays for a look at the artefacts.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// timeout bounds the demo; from an empty cache most of it is spent fetching and building.
const timeout = 30 * time.Minute

func main() {
	arch := flag.String("arch", "s390x", "guest `architecture`: s390x or amd64")
	dir := flag.String("dir", "", "work `folder`, emptied first (default out/demo-ARCH)")
	flag.Parse()
	if *dir == "" {
		*dir = "out/demo-" + *arch
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := run(ctx, *arch, *dir); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}
