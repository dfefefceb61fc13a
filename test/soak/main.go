// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Command soak runs long campaigns within a given time and says how many of each ran. Today these are the fuzz targets
// of all packages, each with an equal share of the time.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"
)

func main() {
	total := flag.Duration("for", 10*time.Minute, "`time` that all campaigns may take together, compiling aside")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := soak(ctx, os.Stdout, *total)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
}

// target is one fuzz target.
type target struct{ pkg, name string }

func soak(ctx context.Context, w io.Writer, total time.Duration) error {
	targets, err := fuzzTargets(ctx)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return fmt.Errorf("no fuzz target found: is this the project's folder?")
	}
	share := total / time.Duration(len(targets))
	fmt.Fprintf(w, "%d fuzz targets, %s each\n", len(targets), share.Round(time.Second))
	for _, t := range targets {
		out, err := goCommand(ctx, "test", "-run=^$", "-fuzz=^"+t.name+"$", "-fuzztime="+share.String(), "-fuzzminimizetime=10x", t.pkg)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", t.name, t.pkg, err)
		}
		fmt.Fprintf(w, "%12s runs  %s %s\n", executions(out), t.pkg, t.name)
	}
	return nil
}

// fuzzTargets lists the fuzz targets of all packages.
func fuzzTargets(ctx context.Context) ([]target, error) {
	packages, err := goCommand(ctx, "list", "-f", `{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}`, "./...")
	if err != nil {
		return nil, err
	}
	var targets []target
	for pkg := range strings.FieldsSeq(packages) {
		names, err := goCommand(ctx, "test", "-list=^Fuzz", pkg)
		if err != nil {
			return nil, err
		}
		for name := range strings.FieldsSeq(names) {
			if strings.HasPrefix(name, "Fuzz") {
				targets = append(targets, target{pkg, name})
			}
		}
	}
	return targets, nil
}

var execs = regexp.MustCompile(`execs: (\d+)`)

// executions is the last count that the fuzzing engine printed.
func executions(out string) string {
	all := execs.FindAllStringSubmatch(out, -1)
	if len(all) == 0 {
		return "?"
	}
	return all[len(all)-1][1]
}

func goCommand(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}
