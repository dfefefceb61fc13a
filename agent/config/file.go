// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/pelletier/go-toml/v2"
)

// maxMarks bounds the bytes '=', '[' and '.' of a file, and so its keys and how deep they go. The library looks for a
// duplicate of each key among all others: without this, a file of 1 MiB would take half a minute.
const maxMarks = 8192

// decodeFile reads a TOML file into its top-level keys.
func decodeFile(open func(string) (io.ReadCloser, error), path string) (map[string]any, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	return decode(data)
}

func decode(data []byte) (map[string]any, error) {
	marks := 0
	for _, m := range []string{"=", "[", "."} {
		marks += bytes.Count(data, []byte(m))
	}
	if marks > maxMarks {
		return nil, fmt.Errorf("it has more than %d equals signs, brackets and dots", maxMarks)
	}
	values := make(map[string]any)
	err := toml.Unmarshal(data, &values)
	if where, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := where.Position()
		return nil, fmt.Errorf("line %d: %s", line, shorten(where.Error()))
	}
	if err != nil {
		return nil, errors.New(shorten(err.Error()))
	}
	return values, nil
}
