// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package progress shows how far a long piece of work is: as a bar on a terminal, as a line every few seconds elsewhere.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// interval is the time between two lines, and before the first: what takes less time says nothing.
const interval = 3 * time.Second

// Task is a piece of work that is measured in bytes. A nil Task shows nothing.
type Task struct {
	name  string
	w     io.Writer
	bar   *progressbar.ProgressBar // nil without a terminal
	now   func() time.Time
	start time.Time

	mu    sync.Mutex
	total int64
	last  time.Time
}

// Start begins a task. total is its size in bytes; 0 means that nobody knows. Whether w is a terminal decides how it is
// shown.
func Start(w io.Writer, name string, total int64) *Task {
	f, ok := w.(*os.File)
	return start(w, name, total, ok && term.IsTerminal(int(f.Fd())), time.Now)
}

func start(w io.Writer, name string, total int64, terminal bool, now func() time.Time) *Task {
	t := &Task{name: name, w: w, now: now, start: now(), last: now(), total: total}
	if !terminal {
		return t
	}
	size := total
	if size <= 0 {
		size = -1
	}
	t.bar = progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(name), progressbar.OptionShowBytes(true), progressbar.OptionFullWidth(),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(total > 0),
		progressbar.OptionSetSpinnerChangeInterval(0)) // else a goroutine of its own turns it, and races with Set
	return t
}

// Set says how many bytes are done, of how many if total is not 0. It may be called from many goroutines.
func (t *Task) Set(done, total int64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if total > 0 && total != t.total {
		t.total = total
		if t.bar != nil {
			t.bar.ChangeMax64(total)
		}
	}
	if t.bar != nil {
		_ = t.bar.Set64(done) // a bar that cannot be drawn stops nothing
		return
	}
	now := t.now()
	if now.Sub(t.last) < interval {
		return
	}
	t.last = now
	rate := float64(done) / now.Sub(t.start).Seconds() / (1 << 20)
	if t.total > 0 {
		fmt.Fprintf(t.w, "%s: %d of %d MiB (%d %%), %.0f MiB/s\n", t.name, done>>20, t.total>>20, done*100/t.total, rate)
		return
	}
	fmt.Fprintf(t.w, "%s: %d MiB, %.0f MiB/s\n", t.name, done>>20, rate)
}

// Done ends the task; a bar disappears.
func (t *Task) Done() {
	if t == nil || t.bar == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.bar.Finish() // a bar that cannot be drawn stops nothing
}
