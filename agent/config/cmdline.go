// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package config

import (
	"iter"
	"strings"
)

// kernelSpace is what separates kernel parameters. The kernel also takes the byte 0xa0 for a space, which would cut
// UTF-8 text in two; nothing known writes it.
const kernelSpace = " \t\n\v\f\r"

// parameter is one kernel parameter.
type parameter struct {
	name, value string
	// valued tells "name=" from "name".
	valued bool
}

// parameters yields those of a command line as the kernel splits them (next_arg in lib/cmdline.c): white
// space inside double quotes does not separate, quotes around the value or the whole are dropped, and any other quote
// stays. What follows "--" are arguments of init, no parameters.
func parameters(line string) iter.Seq[parameter] {
	return func(yield func(parameter) bool) {
		for {
			line = strings.TrimLeft(line, kernelSpace)
			if line == "" {
				return
			}
			var word string
			word, line = nextWord(line)
			p := parse(word)
			if p.name == "--" && !p.valued || !yield(p) {
				return
			}
		}
	}
}

// nextWord cuts line after its first word.
func nextWord(line string) (word, rest string) {
	quoted := false
	for i := range len(line) {
		switch {
		case line[i] == '"':
			quoted = !quoted
		case !quoted && strings.IndexByte(kernelSpace, line[i]) >= 0:
			return line[:i], line[i:]
		}
	}
	return line, ""
}

func parse(word string) parameter {
	word, whole := strings.CutPrefix(word, `"`)
	// An equals sign in the first place separates nothing.
	at := strings.IndexByte(word[min(1, len(word)):], '=') + 1
	if at == 0 {
		return parameter{name: cutQuote(word, whole)}
	}
	v, valueQuoted := strings.CutPrefix(word[at+1:], `"`)
	return parameter{name: word[:at], value: cutQuote(v, whole || valueQuoted), valued: true}
}

// cutQuote drops the closing quote of text that had an opening one.
func cutQuote(s string, opened bool) string {
	if opened {
		s = strings.TrimSuffix(s, `"`)
	}
	return s
}
