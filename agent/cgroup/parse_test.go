// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"math"
	"slices"
	"testing"
)

func FuzzParseNumber(f *testing.F) {
	for _, s := range []string{"0\n", "max\n", "18446744073709551615", "-1\n", "+1", "1_000", "", "0x1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := parseNumber(data); err != nil && n != 0 {
			t.Errorf("number %d with error %v", n, err)
		}
	})
}

func FuzzParseFlat(f *testing.F) {
	for _, s := range []string{"a 1\nb 2\n", "a 1\na 1\n", "a\n", " 1\n", "a -1\n", "a 1", "\n", "a  1\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		values, err := parseFlat(data)
		if (values == nil) != (err != nil) {
			t.Errorf("%v, %v", values, err)
		}
		if _, ok := values[""]; ok {
			t.Error("an empty key")
		}
	})
}

func FuzzParseCPU(f *testing.F) {
	f.Add([]byte("usage_usec 4056\nuser_usec 3000\nsystem_usec 1056\nnr_periods 10\nnr_throttled 2\nthrottled_usec 77\n"))
	f.Add([]byte("usage_usec 18446744073709551\n"))
	f.Add([]byte("usage_usec 18446744073709552\n"))
	f.Add([]byte("user_usec 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cpu, err := parseCPU(data)
		if (cpu == nil) != (err != nil) {
			t.Fatalf("%v, %v", cpu, err)
		}
		if cpu != nil && (cpu.Usage%1000 != 0 || cpu.ThrottledTime > math.MaxUint64/1000*1000) {
			t.Errorf("%+v is not a number of microseconds", cpu)
		}
	})
}

func FuzzParseIO(f *testing.F) {
	for _, s := range []string{
		"8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n", "8:0 8:16 rbytes=1\n", "8:0\n", "\n", "8:0 rbytes\n", "8:0 rbytes==1\n",
		"8:0 cost.vrate=100.00\n", "=\n", "8:0 =1\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseIO(data)
		if err != nil && entries != nil {
			t.Errorf("%v with error %v", entries, err)
		}
		if len(entries)%len(ioOps()) != 0 {
			t.Errorf("%d entries", len(entries))
		}
	})
}

func FuzzParseProcs(f *testing.F) {
	for _, s := range []string{"", "1\n2\n", "2\n1\n2\n", "0\n", "-1\n", "2147483648\n", "1", "\n", "1 2\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		pids, err := parseProcs(data)
		if err != nil && pids != nil {
			t.Errorf("%v with error %v", pids, err)
		}
		for i, pid := range pids {
			// What kill(2) takes for a group of processes must never come out.
			if pid <= 0 || i > 0 && pids[i-1] >= pid {
				t.Errorf("pids %v", pids)
			}
		}
	})
}

func FuzzParseInotify(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add(make([]byte, 32))
	f.Add(make([]byte, 17))
	f.Add(slices.Repeat([]byte{0xff}, 16))
	f.Add([]byte{1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 'n', 'a', 'm', 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		files, err := parseInotify(data)
		if err != nil && files != nil || len(files)*16 > len(data) {
			t.Errorf("%v, %v", files, err)
		}
	})
}

func TestParseProcs(t *testing.T) {
	pids, err := parseProcs([]byte("12\n7\n12\n4194304\n"))
	if err != nil || !slices.Equal(pids, []int{7, 12, 4194304}) {
		t.Errorf("%v, %v", pids, err)
	}
	for _, hostile := range []string{"0\n", "-1\n", "1\n\n", "2147483648\n", "one\n", "1\n0\n"} {
		if pids, err := parseProcs([]byte(hostile)); err == nil {
			t.Errorf("%q: %v", hostile, pids)
		}
	}
}
