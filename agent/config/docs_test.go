// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

const docFile = "../../docs/configuration.md"

// section returns the rows of the table below a heading, without its head, as cells without backquotes; none is "–".
func section(t *testing.T, heading string) [][]string {
	t.Helper()
	doc, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(doc), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no section %s", docFile, heading)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var rows [][]string
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 {
		t.Fatalf("%s: section %s has no table", docFile, heading)
	}
	return rows[2:]
}

func orNone(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// shown is the default of a setting as the documentation has it.
func shown(t *testing.T, v value) string {
	t.Helper()
	switch v := v.(type) {
	case levelValue:
		return strings.ToLower(v.to.String())
	case portValue:
		return fmt.Sprint(*v.to)
	case sizeValue:
		return fmt.Sprint(*v.to)
	case flagValue:
		return fmt.Sprint(*v.to)
	case boolValue:
		return fmt.Sprint(*v.to)
	case allValue:
		return fmt.Sprint(*v.to)
	case timeoutValue:
		return v.to.String()
	case addressValue:
		return *v.to
	case proxyValue:
		return fmt.Sprintf("%q", *v.to)
	case textValue:
		return fmt.Sprintf("%q", *v.to)
	default:
		t.Fatalf("a value of type %T has no form in the documentation", v)
		return ""
	}
}

// TestSettingsAndDocumentationAgree compares names and defaults of both lists of settings with the tables, both ways.
func TestSettingsAndDocumentationAgree(t *testing.T) {
	t.Parallel()
	c := defaults()
	var taken, ignored []string
	for _, s := range settings(&c, new(bool)) {
		row := strings.Join([]string{orNone(s.param), orNone(s.key), orNone(s.env)}, " ")
		if s.value != nil {
			taken = append(taken, row+" "+shown(t, s.value))
		} else {
			ignored = append(ignored, row)
		}
	}
	for heading, want := range map[string]struct {
		rows  []string
		cells int
	}{"Settings": {taken, 4}, "Accepted and ignored": {ignored, 3}} {
		var got []string
		for _, cells := range section(t, heading) {
			if len(cells) != want.cells+1 || cells[want.cells] == "" {
				t.Fatalf("%s: %q has %d cells, want %d, the last one not empty", heading, cells, len(cells), want.cells+1)
			}
			got = append(got, strings.Join(cells[:want.cells], " "))
		}
		for _, w := range want.rows {
			if !slices.Contains(got, w) {
				t.Errorf("%s: section %s does not describe %s", docFile, heading, w)
			}
		}
		for _, g := range got {
			if !slices.Contains(want.rows, g) {
				t.Errorf("%s: section %s describes %s, which the code does not know so", docFile, heading, g)
			}
		}
		if len(got) != len(want.rows) {
			t.Errorf("%s: section %s has %d rows, the code %d settings", docFile, heading, len(got), len(want.rows))
		}
	}
}

// TestDocumentedExample loads the example of the documentation.
func TestDocumentedExample(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "```toml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatalf("%s has no example", docFile)
	}
	c, warnings, err := Load(Options{File: "f", Open: opens(example)})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("got %v and %v", warnings, err)
	}
	if c.HotplugTimeout != 10*time.Second || c.ImagePullTimeout != 5*time.Minute || c.ContainerPipeSize != 1<<20 {
		t.Errorf("got %+v", c)
	}
}
