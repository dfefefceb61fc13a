// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// maxLogLine bounds a line of a guest's log in bytes; the agent's own are at most 64 KiB long.
const maxLogLine = 1 << 20

// CopyLog copies the log that a guest offers on its log port, until that ends: for people, or line by line as it is, as
// JSON. What could have an effect on the reader's terminal is escaped for people.
func CopyLog(w io.Writer, log io.Reader, asJSON bool) error {
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, maxLogLine)
	for lines.Scan() {
		text := lines.Text()
		if !asJSON {
			text = formatLogLine(text)
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return fmt.Errorf("pass log on: %w", err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}

// formatLogLine turns a line of Kata's format (a flat JSON object of strings) into time, level, message and the
// attributes, without what is the same in each line.
func formatLogLine(line string) string {
	var fields map[string]string
	if json.Unmarshal([]byte(line), &fields) != nil {
		return printable(line)
	}
	var out strings.Builder
	_, _ = fmt.Fprintf(&out, "%s %-4s %s", printable(fields["ts"]), printable(fields["level"]), printable(fields["msg"]))
	for _, key := range []string{"ts", "level", "msg", "name", "pid", "source", "version"} {
		delete(fields, key)
	}
	if fields["subsystem"] == "root" {
		delete(fields, "subsystem")
	}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		value := printable(fields[key])
		if value == "" || strings.ContainsAny(value, " \"=") {
			value = strconv.Quote(fields[key])
		}
		_, _ = fmt.Fprintf(&out, " %s=%s", printable(key), value)
	}
	return out.String()
}

// printable escapes what a terminal would not print.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) < 0 {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}
