// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestDocumentedCommandLines: every command line in the documentation and in the examples of --help names commands,
// flags and arguments that exist.
func TestDocumentedCommandLines(t *testing.T) {
	t.Parallel()
	texts := map[string]string{}
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, "../../README.md") {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[file] = string(data)
	}
	addExamples(texts, newRootCommand())
	n := 0
	for where, text := range texts {
		for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
			args := strings.Fields(strings.TrimSuffix(strings.TrimSpace(line), "&"))
			if len(args) < 2 || args[0] != "cloister" || strings.Contains(line, " ... ") { // part of a command line
				continue
			}
			n++
			if err := parses(args[1:]); err != nil {
				t.Errorf("%s: %s: %v", where, strings.TrimSpace(line), err)
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d command lines found", n)
	}
}

// Every command that does something shows how it is used.
func TestEveryCommandHasAnExample(t *testing.T) {
	t.Parallel()
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		if cmd.HasSubCommands() || strings.Contains(cmd.CommandPath(), " completion") || cmd.Name() == "help" {
			return
		}
		if !strings.Contains(cmd.Example, cmd.CommandPath()+" ") && !strings.HasSuffix(cmd.Example, cmd.Name()) && !strings.Contains(cmd.Example, " "+cmd.Name()+" ") {
			t.Errorf("%s has no example of its own: %q", cmd.CommandPath(), cmd.Example)
		}
	}
	walk(newRootCommand())
}

func addExamples(texts map[string]string, cmd *cobra.Command) {
	if cmd.Example != "" {
		texts[cmd.CommandPath()+" --help"] = cmd.Example
	}
	for _, sub := range cmd.Commands() {
		addExamples(texts, sub)
	}
}

// parses does all that a run of the command line does before the command itself starts.
func parses(args []string) error {
	cmd, rest, err := newRootCommand().Find(args)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}
