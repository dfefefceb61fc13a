// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/version"
)

// Exit codes that no error chooses by itself.
const (
	exitOK = iota
	exitFailure
	exitUsage
)

// newRootCommand returns the command line with all its commands.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "cloister",
		Short: "Build and operate the guest side of confidential containers",
		Long: "cloister builds guests whose root disk only their sealed initramfs can unlock, encrypts container images for\n" +
			"them, seals guests for IBM Secure Execution, and talks to the agent in a running guest.\n\n" +
			"Exit codes: 0 done, 1 failed (or: no match, something missing), 2 wrong usage; leakscan has 3 and 4 of its own, and\n" +
			"commands that run a process in a guest end with its status. Results go to standard output, all else to standard error.",
		Version:       version.String(),
		SilenceErrors: true, // report prints them
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("cloister {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd: cmd.CommandPath(), err: err} })
	root.AddCommand(
		newBuildCommand(),
		newCtlCommand(),
		newDecryptCommand(),
		newDoctorCommand(),
		newEncryptCommand(),
		newImageCommand(),
		newLeakscanCommand(),
		newInspectCommand(),
		newRunCommand(),
		newSECommand(),
		newSecretCommand(),
		newSetupCommand(),
	)
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Args, completion.RunE = cobra.NoArgs, root.RunE // or an unknown shell gets the help and exit code 0
	}
	checkUsage(root)
	completeValues(root)
	return root
}

// completeValues has shells complete the values of flags that mean the same everywhere.
func completeValues(cmd *cobra.Command) {
	for name, values := range map[string][]string{
		"arch":        initramfs.Architectures(),
		"policy":      {layout.PolicyDenyAll, layout.PolicyAllowAll},
		"log-level":   {"debug", "info", "warn", "error"},
		"compression": {"none", "zstd"},
	} {
		if cmd.Flags().Lookup(name) != nil {
			cobra.CheckErr(cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
		}
	}
	for _, sub := range cmd.Commands() {
		completeValues(sub)
	}
}

// usageError is a mistake on the command line.
type usageError struct {
	cmd string
	err error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// Hint says where the right usage is found.
func (e *usageError) Hint() string { return e.cmd + " --help shows how it is used" }

// checkUsage makes usage errors of what the argument checks of a command and its sub-commands find.
func checkUsage(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			if err == nil {
				return nil
			}
			if strings.Contains(c.Use, " ") { // it takes arguments
				err = fmt.Errorf("%w: use %s", err, c.UseLine())
			}
			c.SuggestionsMinimumDistance = 2
			if near := c.SuggestionsFor(strings.Join(args, " ")); len(near) > 0 {
				err = fmt.Errorf("%w: did you mean %s?", err, strings.Join(near, " or "))
			}
			return &usageError{cmd: c.CommandPath(), err: err}
		}
	}
	for _, sub := range cmd.Commands() {
		checkUsage(sub)
	}
}

// exitCode returns the status that an error, or nil, ends the program with. An error chooses by a method ExitCode.
func exitCode(err error) int {
	var usage *usageError
	var chosen interface{ ExitCode() int }
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &chosen):
		return chosen.ExitCode()
	default:
		return exitFailure
	}
}

// report prints an error, and what to do about it if the error says so by a method Hint. An error without text is one
// that only chooses the exit code.
func report(w io.Writer, err error) {
	if err.Error() == "" {
		return
	}
	_, _ = fmt.Fprintf(w, "cloister: %v\n", err)
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) && hinted.Hint() != "" {
		_, _ = fmt.Fprintf(w, "cloister: hint: %s\n", hinted.Hint())
	}
}
