// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"strings"
	"unicode"
)

const (
	// maxLog bounds how much of a runtime's log is read, in bytes.
	maxLog = 64 << 10
	// maxText bounds the text made of it, in bytes: it goes into errors that travel to the host.
	maxText = 1 << 10
)

// readLog returns the errors in a log of the runtime: one JSON object with level and msg on each line. Names from the
// container show up in them, so that what cannot be printed is replaced. It returns "" if there is nothing to tell.
func readLog(path string) string {
	data, err := readBounded(path, maxLog)
	if err != nil {
		return ""
	}
	var texts []string
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		var line struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Level == "error" && line.Msg != "" {
			texts = append(texts, line.Msg)
		}
	}
	text := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.Join(texts, "; "))
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// readBounded reads no more than limit bytes of a file.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}
