// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package debian

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Resolve returns the one package named like prefix… that the suite's meta package depends on, for instance the
// kernel package behind linux-image-s390x. When the lists cannot be asked it answers with what it found last time.
func (a *Archive) Resolve(ctx context.Context, s Suite, meta, prefix string) (string, error) {
	if err := checkNames([]string{meta}); err != nil {
		return "", err
	}
	p, err := a.Fetch(ctx, s, meta)
	if err != nil {
		return "", err
	}
	var found []string
	for _, name := range DependsNames(p[0].Depends) {
		if strings.HasPrefix(name, prefix) && !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("resolve %s of %s: it depends on %d packages named %s… instead of one: %q", meta, s, len(found), prefix, p[0].Depends)
	}
	return found[0], nil
}

// DependsNames returns the package names of a Depends field, in order; of alternatives (a | b) the first. Version
// bounds and architecture qualifiers are left out (Debian Policy, section 7.1).
func DependsNames(depends string) []string {
	var names []string
	for clause := range strings.SplitSeq(depends, ",") {
		first, _, _ := strings.Cut(clause, "|")
		f := strings.Fields(first)
		if len(f) == 0 {
			continue
		}
		name, _, _ := strings.Cut(f[0], ":")
		name, _, _ = strings.Cut(name, "(")
		names = append(names, name)
	}
	return names
}

// parseFields reads the "Name: value" lines of one control paragraph; continuation lines belong to the field before
// them (Debian Policy, section 5.1).
func parseFields(text string) map[string]string {
	fields := map[string]string{}
	last := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line != "" && (line[0] == ' ' || line[0] == '\t') && last != "" {
			fields[last] += " " + strings.TrimSpace(line)
			continue
		}
		if name, value, ok := strings.Cut(line, ":"); ok {
			last = name
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields
}
