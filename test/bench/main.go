// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Command bench measures a guest of one architecture: the boot by stages, image pull, container life cycle, sizes and
// the agent's memory; or, with --native, the agent as a process of this machine: requests, containers and processes
// against the bare OCI runtime, output, and what it costs to have many containers; or, with --images, pulls on this
// machine, against skopeo, umoci and tar. It prints one table, as text or JSON.
// Figures are medians over the runs; compare figures of one run with each other, not with those of another machine.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"
)

const timeout = 30 * time.Minute

func main() {
	arch := flag.String("arch", "s390x", "guest `architecture`: s390x or amd64")
	runs := flag.Int("runs", 3, "`number` of guests to boot and measure")
	native := flag.Bool("native", false, "measure the agent as a process of this machine, in place of a guest; needs root")
	images := flag.Bool("images", false, "measure pulls of images on this machine, in place of a guest; needs root")
	var o imageOptions
	o.register(flag.CommandLine)
	asJSON := flag.Bool("json", false, "print JSON instead of a table")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var table *table
	var err error
	switch {
	case os.Getenv(pullEnv) != "":
		err = pullHere(ctx)
	case *images:
		o.runs = *runs
		table, err = measureImages(ctx, o)
	case *native:
		table, err = measureNative(ctx)
	default:
		table, err = measure(ctx, *arch, *runs)
	}
	if err == nil && table != nil {
		err = table.print(os.Stdout, *asJSON)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func (t *table) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(t)
	}
	fmt.Fprintf(w, "%s, medians\n", t.Title)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "what\tmedian\tmin\tmax\tunit\t")
	for _, r := range t.Rows {
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%s\t\n", r.Name, r.Median, r.Min, r.Max, r.Unit)
	}
	return tw.Flush()
}
