// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guesttest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cloister-cc/cloister/internal/guesttest/plan"
)

// result is what the guest said about one package.
type result struct {
	started, ended  bool
	exit            int
	seconds         float64
	passed, skipped []string
	failed          []string
	output          []string
}

// report is what the guest said about itself.
type report struct {
	results map[string]*result
	errors  []string
	done    bool
}

// verdict is the line by which -test.v=test2json tells how a test ended: SYN (0x16) at its start tells it from what a
// test prints.
var verdict = regexp.MustCompile(`^\x16--- (PASS|FAIL|SKIP): (\S+) \(`)

func collect(events []plan.Event) *report {
	r := &report{results: map[string]*result{}}
	for _, e := range events {
		p := r.results[e.Package]
		if p == nil && e.Package != "" {
			p = &result{}
			r.results[e.Package] = p
		}
		switch {
		case e.Kind == plan.KindError:
			r.errors = append(r.errors, e.Text)
		case e.Kind == plan.KindDone:
			r.done = true
		case p == nil:
			r.errors = append(r.errors, fmt.Sprintf("event %q without a package", e.Kind))
		default:
			p.add(e)
		}
	}
	return r
}

func (p *result) add(e plan.Event) {
	switch e.Kind {
	case plan.KindStart:
		p.started = true
	case plan.KindEnd:
		p.ended, p.exit, p.seconds = true, e.Exit, e.Seconds
	case plan.KindOutput:
		p.output = append(p.output, strings.TrimPrefix(e.Text, "\x16"))
		m := verdict.FindStringSubmatch(e.Text)
		if m == nil {
			return
		}
		switch m[1] {
		case "PASS":
			p.passed = append(p.passed, m[2])
		case "SKIP":
			p.skipped = append(p.skipped, m[2])
		default:
			p.failed = append(p.failed, m[2])
		}
	}
}

// problems returns what is wrong with a package's result; none means that it passed.
func (p *result) problems(want Package) []string {
	switch {
	case p == nil || !p.started:
		return []string{"its tests did not start"}
	case !p.ended:
		return []string{"its tests did not end"}
	}
	var problems []string
	for _, name := range p.failed {
		problems = append(problems, name+" failed")
	}
	if p.exit != 0 && len(problems) == 0 {
		problems = append(problems, fmt.Sprintf("the test binary ended with status %d", p.exit))
	}
	for _, name := range p.skipped {
		if !slices.Contains(want.MaySkip, name) {
			problems = append(problems, name+" skipped itself")
		}
	}
	if len(p.passed) == 0 {
		problems = append(problems, "no test passed")
	}
	return problems
}
