// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package progress

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// clock is a time that moves by hand.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func TestPlainLines(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	c := &clock{time.Unix(1000, 0)}
	task := start(&b, "seal", 0, false, c.now)
	task.Set(1<<20, 0)
	c.t = c.t.Add(2 * time.Second)
	task.Set(2<<20, 0)
	if b.Len() != 0 {
		t.Errorf("after two seconds it says %q", b.String())
	}
	c.t = c.t.Add(2 * time.Second)
	task.Set(8<<20, 0)
	task.Set(9<<20, 0)
	c.t = c.t.Add(4 * time.Second)
	task.Set(64<<20, 128<<20)
	task.Done()
	if want := "seal: 8 MiB, 2 MiB/s\nseal: 64 of 128 MiB (50 %), 8 MiB/s\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestBar(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	task := start(&b, "seal", 100<<20, true, time.Now)
	time.Sleep(110 * time.Millisecond)
	task.Set(50<<20, 0)
	if !strings.Contains(b.String(), "seal") || !strings.Contains(b.String(), "50%") {
		t.Errorf("bar %q", b.String())
	}
	task.Done()
}

func TestConcurrentAndNil(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	task := start(&b, "copy", 0, true, time.Now)
	var wg sync.WaitGroup
	for n := range 10 {
		wg.Go(func() { task.Set(int64(n), 100) })
	}
	wg.Wait()
	task.Done()
	var none *Task
	none.Set(1, 2)
	none.Done()
	if Start(&b, "x", 1).bar != nil {
		t.Error("a bar without a terminal")
	}
}
