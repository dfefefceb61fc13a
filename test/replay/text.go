// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package replay

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	variable = regexp.MustCompile(`\$\{([a-z0-9_]+)\}`)
	encoded  = regexp.MustCompile(`\$\{base64:([^}]*)\}`)
)

// expand replaces the variables in a text.
func expand(text string, vars map[string]string) (string, error) {
	var unknown string
	text = variable.ReplaceAllStringFunc(text, func(m string) string {
		value, ok := vars[m[2:len(m)-1]]
		if !ok {
			unknown = m
		}
		return value
	})
	if unknown != "" {
		return "", fmt.Errorf("nothing is known of %s", unknown)
	}
	return encoded.ReplaceAllStringFunc(text, func(m string) string {
		return base64.StdEncoding.EncodeToString([]byte(m[len("${base64:") : len(m)-1]))
	}), nil
}

// expandAll replaces the variables in every text of a JSON value.
func expandAll(value any, vars map[string]string) (any, error) {
	switch v := value.(type) {
	case string:
		return expand(v, vars)
	case []any:
		out := make([]any, len(v))
		for i, element := range v {
			var err error
			if out[i], err = expandAll(element, vars); err != nil {
				return nil, err
			}
		}
		return out, nil
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, element := range v {
			name, err := expand(key, vars)
			if err != nil {
				return nil, err
			}
			if out[name], err = expandAll(element, vars); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return value, nil
}

// merge puts a request over a base: objects field by field, everything else as a whole, and "field+" behind the list of
// the base.
func merge(base, over any) (any, error) {
	if over == nil {
		return base, nil
	}
	b, ok := base.(map[string]any)
	o, both := over.(map[string]any)
	if !ok || !both {
		return over, nil
	}
	out := maps.Clone(b)
	for key, value := range o {
		name, appends := strings.CutSuffix(key, "+")
		if appends {
			list, ok := out[name].([]any)
			more, both := value.([]any)
			if !ok || !both {
				return nil, fmt.Errorf("%s: not a list", key)
			}
			out[name] = slices.Concat(list, more)
			continue
		}
		merged, err := merge(out[key], value)
		if err != nil {
			return nil, err
		}
		out[key] = merged
	}
	return out, nil
}

// diff says where a JSON value is not what was wanted, or "" where all that was wanted is there.
func diff(path string, got, want any) string {
	switch w := want.(type) {
	case map[string]any:
		if rule, ok := w["$absent"]; ok {
			if (got == nil) != (rule == true) {
				return fmt.Sprintf("%s is %s, want absent: %v", path, text(got), rule)
			}
			return ""
		}
		if bound, ok := w["$at_least"]; ok {
			return atLeast(path, got, bound)
		}
		g, ok := got.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s is %s, want %s", path, text(got), text(want))
		}
		for _, key := range slices.Sorted(maps.Keys(w)) {
			if d := diff(path+"."+key, g[key], w[key]); d != "" {
				return d
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Sprintf("%s is %s, want %s", path, text(got), text(want))
		}
		for i := range w {
			if d := diff(fmt.Sprintf("%s[%d]", path, i), g[i], w[i]); d != "" {
				return d
			}
		}
		return ""
	}
	// Numbers of 64 bits are strings on the wire form of JSON, and a variable is one always.
	if scalar(got) != scalar(want) {
		return fmt.Sprintf("%s is %s, want %s", path, text(got), text(want))
	}
	return ""
}

func atLeast(path string, got, bound any) string {
	g, err := strconv.ParseFloat(scalar(got), 64)
	if b, boundErr := strconv.ParseFloat(scalar(bound), 64); err != nil || boundErr != nil || g < b {
		return fmt.Sprintf("%s is %s, want at least %s", path, text(got), text(bound))
	}
	return ""
}

func scalar(v any) string {
	switch v.(type) {
	case nil, map[string]any, []any:
		return text(v)
	}
	return fmt.Sprint(v)
}

// maxText bounds a value in an error text, in bytes.
const maxText = 1000

func text(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return shorten(string(data))
}

func shorten(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "…"
	}
	return s
}
