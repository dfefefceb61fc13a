// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/internal/doctor"
)

// newDoctorCommand returns "cloister doctor".
func newDoctorCommand() *cobra.Command {
	var jobs []string
	var cache string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine lacks, and what mends it",
		Long: "doctor looks for what building guests (build), sealing them (seal), running them in the emulator (run) and developing\n" +
			"Cloister (develop) need. It changes nothing. It exits with 0 if all is there, and with 1 if something is missing.",
		Example: "  cloister doctor\n  cloister doctor --for build --for seal --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, j := range jobs {
				if !slices.Contains(doctor.Jobs(), j) {
					return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--for %q is none of %s", j, strings.Join(doctor.Jobs(), ", "))}
				}
			}
			return printFindings(cmd, doctor.New(cache).Check(cmd.Context(), jobs), asJSON)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&jobs, "for", doctor.Jobs(), "what the machine is for (may be repeated)")
	f.StringVar(&cache, "cache", "", "cache folder of 'cloister setup' (default: cloister in the user's cache folder)")
	f.BoolVar(&asJSON, "json", false, "print as JSON")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(doctor.Jobs(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func printFindings(cmd *cobra.Command, findings []doctor.Finding, asJSON bool) error {
	missing := slices.ContainsFunc(findings, func(f doctor.Finding) bool { return !f.OK })
	out := cmd.OutOrStdout()
	if asJSON {
		if err := printJSON(out, map[string]any{"ok": !missing, "findings": findings}); err != nil {
			return err
		}
	}
	for _, f := range findings {
		if asJSON {
			break
		}
		verdict := "ok"
		if !f.OK {
			verdict = "MISSING"
		}
		fmt.Fprintf(out, "%-8s %-30s %s\n", verdict, f.Name, f.Detail)
		if f.Mend != "" {
			fmt.Fprintf(out, "%-8s %-30s for %s: %s\n", "", "", strings.Join(f.Jobs, ", "), f.Mend)
		}
	}
	if missing {
		return exitStatus(exitFailure)
	}
	return nil
}
