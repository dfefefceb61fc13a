// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package leakscan

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// shown is how many findings of an artefact a table shows.
const shown = 10

// Print writes the report as a table, and below it what was found and what was not searched.
func (r *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ARTEFACT\tSEARCHED\tINFLATED\tCONTROL FOUND\tHITS")
	for _, a := range r.Results {
		control, hits := strings.Join(a.Control, ", "), fmt.Sprint(a.Hits)
		if control == "" {
			control = "NO: BLIND"
		}
		if a.Known > 0 {
			hits += fmt.Sprintf(" (and %d known)", a.Known)
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\n", a.Artefact, a.Bytes, a.Inflated, control, hits)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	for _, a := range r.Results {
		if a.Bytes == 0 {
			fmt.Fprintf(&b, "%s: nothing to search\n", a.Artefact)
		}
		for _, s := range a.Skipped {
			fmt.Fprintf(&b, "%s: not searched: %s\n", a.Artefact, s)
		}
		if a.Hits == 0 {
			continue
		}
		for _, h := range a.Found[:min(shown, len(a.Found))] {
			fmt.Fprintf(&b, "%s: %s in %s at offset %d of %s\n", a.Artefact, h.Secret, h.Encoding, h.Offset, h.Where)
		}
		if more := len(a.Found) - shown; more > 0 {
			fmt.Fprintf(&b, "%s: and %d more\n", a.Artefact, more)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
