// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStats(t *testing.T) {
	ops := func(major, minor uint64, values ...uint64) (entries []IOEntry) {
		for i, op := range []string{"read", "write", "rios", "wios", "dbytes", "dios"} {
			entries = append(entries, IOEntry{major, minor, op, values[i]})
		}
		return entries
	}
	tests := map[string]struct {
		root, path string
		want       Stats
	}{
		"every controller": {"testdata/full", "/kata/c1", Stats{
			CPU: &CPU{Usage: 4056000, User: 3000000, System: 1056000, Periods: 10, ThrottledPeriods: 2, ThrottledTime: 77000},
			Memory: &Memory{
				Usage: MemoryData{Usage: 8192000, Max: 9000000, Limit: math.MaxUint64, Failcnt: 3},
				Swap:  &MemoryData{Limit: 1048576, Failcnt: 5},
				Cache: 1234567,
				Stats: map[string]uint64{"anon": 4096, "file": 1234567, "kernel": 65536, "workingset_refault_anon": math.MaxUint64},
			},
			Pids: &Pids{Current: 3},
			IO:   slices.Concat(ops(8, 0, 1459200, 314773504, 192, 353, 0, 0), ops(8, 16, 90, 1, 0, 0, 0, 0)),
			Hugetlb: map[string]Hugetlb{
				"1GB": {Usage: 2097152, Limit: math.MaxUint64, Failcnt: 4},
				"2MB": {Usage: 2097152, Limit: 4194304, Failcnt: 4},
			},
		}},
		"no controller": {"testdata/bare", "/c1", Stats{CPU: &CPU{Usage: 1000, User: 1000}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Hierarchy{Root: test.root}.Stats(test.path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&test.want, got); diff != "" {
				t.Errorf("stats differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestStatsOfMissingGroup(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "gutted"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/missing", "/missing/below", "/gutted"} {
		if s, err := (Hierarchy{Root: root}).Stats(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, %v; want fs.ErrNotExist", path, s, err)
		}
	}
}

// TestStatsHostile overwrites one file of a good group. Stats must fail and name it.
func TestStatsHostile(t *testing.T) {
	tests := map[string][]string{
		"cpu.stat": {
			"", "usage_usec", "usage_usec -1\n", "usage_usec 1\nusage_usec 1\n", "user_usec 1\n", "usage_usec 18446744073709551615\n",
			"usage_usec 1\nthrottled_usec 18446744073709551\n\n", "usage_usec 1\nuser_usec 18446744073709552\n", "usage_usec 1 2\n",
		},
		"memory.current":      {"", "\n", "-1\n", "+1\n", "1_0\n", "0x10\n", "18446744073709551616\n", "1\n2\n", "MAX\n", "\x00"},
		"memory.peak":         {"many\n"},
		"memory.max":          {"maximum\n"},
		"memory.events":       {"max -1\n", "max\n", " 1\n"},
		"memory.stat":         {"anon 1.5\n", strings.Repeat("x", 4096) + "\n"},
		"memory.swap.current": {"-4096\n"},
		"memory.swap.max":     {"\n"},
		"memory.swap.events":  {"max x\n"},
		"pids.current":        {"-3\n"},
		"pids.max":            {"-1\n"},
		"io.stat": {
			"rbytes=1\n", "8 rbytes=1\n", "8: rbytes=1\n", ":0 rbytes=1\n", "-8:0 rbytes=1\n", "8:0 rbytes=-1\n", "8:0 rbytes=\n",
			"8:0 rios=18446744073709551616\n", "8:0 dios\n", "4294967296:0 rbytes=1\n", "8:0 rbytes=1 garbage wbytes=2\n",
		},
		"hugetlb.2MB.current": {"x\n"},
		"hugetlb.2MB.max":     {"-1\n"},
		"hugetlb.2MB.events":  {"max ?\n"},
	}
	for name, contents := range tests {
		contents = append(contents, strings.Repeat("1", maxFile+1))
		for i, content := range contents {
			t.Run(fmt.Sprint(name, i), func(t *testing.T) {
				root := t.TempDir()
				if err := os.CopyFS(root, os.DirFS("testdata/full")); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(root, "kata/c1", name), content)
				s, err := Hierarchy{Root: root}.Stats("/kata/c1")
				if err == nil || !strings.Contains(err.Error(), name) || len(err.Error()) > 400 {
					t.Errorf("%+v, error %v; want a short error that names %s", s, err, name)
				}
			})
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
