// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package proc

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestSightings(t *testing.T) {
	a, b, reused := zombie{10, "100"}, zombie{11, "101"}, zombie{10, "999"}
	type step struct {
		after   time.Duration
		zombies []zombie
		held    bool
		claimed []int
		due     []int
	}
	for name, steps := range map[string][]step{
		"due on the second sight": {
			{0, []zombie{a}, false, nil, nil},
			{sweepInterval, []zombie{a}, false, nil, []int{10}},
		},
		"not before the interval is over": {
			{0, []zombie{a}, false, nil, nil},
			{sweepInterval - 1, []zombie{a}, false, nil, nil},
			{1, []zombie{a}, false, nil, []int{10}},
		},
		"a claim protects and starts over": {
			{0, []zombie{a, b}, false, nil, nil},
			{sweepInterval, []zombie{a, b}, false, []int{10}, []int{11}},
			{sweepInterval, []zombie{a}, false, nil, nil},
			{sweepInterval, []zombie{a}, false, nil, []int{10}},
		},
		"a hold protects everything": {
			{0, []zombie{a}, true, nil, nil},
			{sweepInterval, []zombie{a}, true, nil, nil},
			{0, []zombie{a}, false, nil, []int{10}},
		},
		"another process of the same pid starts over": {
			{0, []zombie{a}, false, nil, nil},
			{sweepInterval, []zombie{reused}, false, nil, nil},
			{sweepInterval, []zombie{reused}, false, nil, []int{10}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := make(sightings)
			now := time.Unix(0, 0)
			for i, st := range steps {
				now = now.Add(st.after)
				due := s.update(now, st.zombies, st.held, func(pid int) bool { return slices.Contains(st.claimed, pid) })
				if !slices.Equal(due, st.due) {
					t.Errorf("step %d: due %v, want %v", i, due, st.due)
				}
			}
			if len(s) != 0 {
				t.Errorf("%d sightings are left", len(s))
			}
		})
	}
}

func TestSweepLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReaper(nil)
		signals := make(chan os.Signal, 1)
		start := time.Now()
		var at []time.Duration
		left := []bool{true, false, false}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r.sweepLoop(signals, func(time.Time) bool {
				at = append(at, time.Since(start))
				return left[len(at)-1]
			})
		}()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(at) != 0 {
			t.Fatalf("sweeps without a signal: %v", at)
		}
		signals <- os.Interrupt
		time.Sleep(10 * time.Second)
		synctest.Wait()
		signals <- os.Interrupt
		time.Sleep(10 * time.Second)
		synctest.Wait()
		want := []time.Duration{12 * time.Second, 14 * time.Second, 22 * time.Second}
		if !slices.Equal(at, want) {
			t.Errorf("sweeps at %v, want %v", at, want)
		}
		close(r.closing)
		<-ended
	})
}

func TestParseStat(t *testing.T) {
	const rest = " 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"
	for _, test := range []struct {
		in, state string
		parent    int
		ok        bool
	}{
		{"12 (sh) Z 7" + rest, "Z", 7, true},
		{"12 (a) Z 9 (b)) S 8" + rest, "S", 8, true},
		{"12 (sh) Z 7 1 1", "", 0, false},
		{"12 (sh) Z x" + rest, "", 0, false},
		{"", "", 0, false},
	} {
		state, parent, start, ok := parseStat([]byte(test.in))
		if state != test.state || parent != test.parent || ok != test.ok || ok && start != "4711" {
			t.Errorf("%q: %q, %d, %q, %t", test.in, state, parent, start, ok)
		}
	}
}

func TestFindZombies(t *testing.T) {
	dir := t.TempDir()
	const rest = " 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n"
	for name, stat := range map[string]string{
		"12": "12 (mine) Z 7" + rest, "13": "13 (runs) S 7" + rest, "14": "14 (other) Z 8" + rest,
		"self": "12 (x) Z 7" + rest, "15": "broken",
	} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "stat"), []byte(stat), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "16"), 0o700); err != nil { // has gone between the listing and the look
		t.Fatal(err)
	}
	got, err := findZombies(dir, 7)
	if want := []zombie{{12, "4711"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if _, err := findZombies(filepath.Join(dir, "none"), 7); err == nil {
		t.Error("a proc that is not there was listed")
	}
}
