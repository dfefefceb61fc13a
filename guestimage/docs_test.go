// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestEveryFieldIsDocumented looks for each field of guest.json in the documentation's table.
func TestEveryFieldIsDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/guest.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(doc), "## guest.json")
	if !ok {
		t.Fatal("docs/guest.md does not describe guest.json")
	}
	for f := range reflect.TypeFor[Guest]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		found := false
		for row := range strings.Lines(table) {
			cells := strings.Split(row, "|")
			found = found || len(cells) > 1 && strings.Contains(cells[1], "`"+name+"`")
		}
		if !found {
			t.Errorf("docs/guest.md does not describe %s", name)
		}
	}
}
