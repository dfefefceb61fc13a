// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// maxToken is how much of a malformed line an error shows.
const maxToken = 64

// parseNumber reads a file of one number. The word "max" stands for no limit and gives math.MaxUint64.
func parseNumber(data []byte) (uint64, error) {
	text := strings.TrimSuffix(string(data), "\n")
	if text == "max" {
		return math.MaxUint64, nil
	}
	return number(text)
}

// number reads a number in digits alone: neither a sign nor the underscores and prefixes of Go.
func number(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("malformed number %.*q", maxToken, text)
	}
	return n, nil
}

// parseFlat reads a flat keyed file: lines of a key, a space and a number.
func parseFlat(data []byte) (map[string]uint64, error) {
	values := map[string]uint64{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		key, text, ok := strings.Cut(line, " ")
		if !ok || key == "" {
			return nil, fmt.Errorf("malformed line %.*q", maxToken, line)
		}
		n, err := number(text)
		if err != nil {
			return nil, err
		}
		if _, twice := values[key]; twice {
			return nil, fmt.Errorf("key %.*q comes twice", maxToken, key)
		}
		values[key] = n
	}
	return values, nil
}

// parseCPU reads cpu.stat. Its times are in microseconds.
func parseCPU(data []byte) (*CPU, error) {
	values, err := parseFlat(data)
	if err != nil {
		return nil, err
	}
	if _, ok := values["usage_usec"]; !ok {
		return nil, errors.New("usage_usec is missing")
	}
	nanoseconds := func(key string) uint64 {
		n := values[key]
		if n > math.MaxUint64/1000 {
			err = fmt.Errorf("%s is out of range", key)
			return 0
		}
		return n * 1000
	}
	cpu := &CPU{
		Usage: nanoseconds("usage_usec"), User: nanoseconds("user_usec"), System: nanoseconds("system_usec"),
		Periods: values["nr_periods"], ThrottledPeriods: values["nr_throttled"], ThrottledTime: nanoseconds("throttled_usec"),
	}
	if err != nil {
		return nil, err
	}
	return cpu, nil
}

// ioOps are the counters of io.stat, in the order in which Kata's agent lists them, and its names for them.
func ioOps() []struct{ key, op string } {
	return []struct{ key, op string }{
		{"rbytes", "read"},
		{"wbytes", "write"},
		{"rios", "rios"},
		{"wios", "wios"},
		{"dbytes", "dbytes"},
		{"dios", "dios"},
	}
}

// parseIO reads io.stat: lines of a device as MAJOR:MINOR and key=value pairs. Some kernels leave out the line's end
// after a device without counters, so that the next device follows on the same line. Counters of other names, which
// the cost model and the controllers of latency add, are not all numbers and are left out.
func parseIO(data []byte) ([]IOEntry, error) {
	var entries []IOEntry
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		for len(fields) > 0 {
			next := slices.IndexFunc(fields[1:], func(f string) bool { return !strings.Contains(f, "=") }) + 1
			if next == 0 {
				next = len(fields)
			}
			of, err := parseDevice(fields[0], fields[1:next])
			if err != nil {
				return nil, err
			}
			entries = append(entries, of...)
			fields = fields[next:]
		}
	}
	return entries, nil
}

func parseDevice(device string, counters []string) ([]IOEntry, error) {
	majorText, minorText, ok := strings.Cut(device, ":")
	major, err := strconv.ParseUint(majorText, 10, 32)
	if !ok || err != nil {
		return nil, fmt.Errorf("malformed device %.*q", maxToken, device)
	}
	minor, err := strconv.ParseUint(minorText, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("malformed device %.*q", maxToken, device)
	}
	if len(counters) == 0 {
		return nil, nil
	}
	ops := ioOps()
	entries := make([]IOEntry, len(ops))
	for i, o := range ops {
		entries[i] = IOEntry{Major: major, Minor: minor, Op: o.op}
	}
	for _, c := range counters {
		key, text, _ := strings.Cut(c, "=")
		i := slices.IndexFunc(ops, func(o struct{ key, op string }) bool { return o.key == key })
		if i < 0 {
			continue
		}
		if entries[i].Value, err = number(text); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// parseProcs reads cgroup.procs: a process ID on each line, in no order and possibly more than once. A process of
// another PID namespace shows as 0, which to kill(2) would mean the caller's own process group.
func parseProcs(data []byte) ([]int, error) {
	var pids []int
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		n, err := strconv.ParseUint(line, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("malformed process ID %.*q", maxToken, line)
		}
		if n == 0 {
			return nil, errors.New("a process is outside of this PID namespace")
		}
		pids = append(pids, int(n))
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}
