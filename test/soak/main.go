// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Command soak runs long campaigns within a given time and says how many of each ran: first those of containers over a
// real crun (faults, attacks, leaks), which take as long as they take, then the fuzz targets of all packages, each with
// an equal share of the time that is left.
package main

import (
	"bytes"
	"context"
	"errors"
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
	start := time.Now()
	if err := containers(ctx, w, total); err != nil {
		return err
	}
	share := max(total-time.Since(start), 0) / time.Duration(len(targets))
	if share < minShare {
		fmt.Fprintf(w, "no time is left for %d fuzz targets\n", len(targets))
		return nil
	}
	fmt.Fprintf(w, "%d fuzz targets, %s each\n", len(targets), share.Round(time.Second))
	for _, t := range targets {
		out, err := goCommand(ctx, nil, "test", "-run=^$", "-fuzz=^"+t.name+"$", "-fuzztime="+share.String(), "-fuzzminimizetime=10x", t.pkg)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", t.name, t.pkg, err)
		}
		fmt.Fprintf(w, "%12s runs  %s %s\n", executions(out), t.pkg, t.name)
	}
	return nil
}

// minShare is the least time for a fuzz target, in which its seeds run.
const minShare = time.Second

const (
	// containersPackage has the campaigns of containers, which runtimeTests are a pattern of.
	containersPackage = "./agent/runtime"
	runtimeTests      = "^(TestKilledCrun|TestNothingIsLeft|TestSharedFileRaceOverCrun)$"
	// soakEnv makes these tests campaigns.
	soakEnv = "CLOISTER_SOAK=1"
)

// containers runs the campaigns of containers, which say what they did in lines of their own.
func containers(ctx context.Context, w io.Writer, limit time.Duration) error {
	fmt.Fprintln(w, "containers over a real crun")
	start := time.Now()
	out, err := goCommand(ctx, []string{soakEnv}, "test", "-count=1", "-v", "-timeout="+max(limit, 10*time.Minute).String(),
		"-run="+runtimeTests, containersPackage)
	if err != nil {
		return fmt.Errorf("campaigns of containers: %w", err)
	}
	lines := campaign.FindAllStringSubmatch(out, -1)
	if len(lines) == 0 { // the tests have skipped themselves, and say why
		fmt.Fprintf(w, "NOT RUN:\n%s", out)
		return errors.New("campaigns of containers: they did not run, see above")
	}
	for _, m := range lines {
		fmt.Fprintf(w, "%12s  %s\n", "", m[1])
	}
	fmt.Fprintf(w, "%12s  in %s\n", "", time.Since(start).Round(time.Second))
	return nil
}

// campaign is a line of a test that says how many of what ran.
var campaign = regexp.MustCompile(`(?m)^.*_test\.go:\d+: campaign: (.*)$`)

// fuzzTargets lists the fuzz targets of all packages.
func fuzzTargets(ctx context.Context) ([]target, error) {
	packages, err := goCommand(ctx, nil, "list", "-f", `{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}`, "./...")
	if err != nil {
		return nil, err
	}
	var targets []target
	for pkg := range strings.FieldsSeq(packages) {
		names, err := goCommand(ctx, nil, "test", "-list=^Fuzz", pkg)
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

func goCommand(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}
