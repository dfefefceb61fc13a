// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package logport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// maxReaders bounds the connections that are served at a time.
	maxReaders = 4
	// maxLine bounds a line in bytes.
	maxLine = 64 << 10
	// lineCost is added to the length of a line, for what it costs besides its bytes.
	lineCost = 64
	// batch is how many bytes are gathered for one write to a reader.
	batch = 32 << 10
	// acceptPause is how long Serve waits after an error of Accept such as a lack of descriptors.
	acceptPause = 100 * time.Millisecond
)

// Fanout keeps the last lines of a log and copies it to its readers. Make one with NewFanout; it is an io.Writer for
// NewHandler. It is safe for concurrent use.
type Fanout struct {
	id    Identity
	limit int

	mu      sync.Mutex
	lines   [][]byte
	first   uint64 // number of lines[0] since the start
	size    int
	changed chan struct{} // closed by the next Write
}

// NewFanout returns a Fanout that keeps at most limit bytes of lines, the newest. Its own lines, which tell readers how
// much they missed, carry id.
func NewFanout(id Identity, limit int) *Fanout {
	return &Fanout{id: id, limit: limit, changed: make(chan struct{})}
}

// Write takes one line. It never waits for a reader and never fails. A line over 64 KiB is replaced by one that says so.
func (f *Fanout) Write(line []byte) (int, error) {
	n := len(line)
	if n > maxLine {
		line = f.note("log line was too long", "bytes", n)
	} else {
		line = bytes.Clone(line)
	}
	if !bytes.HasSuffix(line, []byte("\n")) {
		line = append(line, '\n')
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines = append(f.lines, line)
	f.size += len(line) + lineCost
	for f.size > f.limit && len(f.lines) > 1 {
		f.size -= len(f.lines[0]) + lineCost
		f.lines[0] = nil // the array outlives the slice
		f.lines = f.lines[1:]
		f.first++
	}
	close(f.changed)
	f.changed = make(chan struct{})
	return n, nil
}

// note is a line of the Fanout's own, of level WARN.
func (f *Fanout) note(msg, key string, n int) []byte {
	r := slog.NewRecord(time.Now(), slog.LevelWarn, msg, 0)
	r.Add(subsystemKey, "logport", key, n)
	return (&handler{identity: f.id.fields()}).line(r)
}

// read appends lines from number next on to buf until it holds a batch, after a note on those that are lost. It returns
// the number of the next line, and if there is none yet, a channel that is closed when there may be.
func (f *Fanout) read(buf []byte, next uint64) (_ []byte, _ uint64, wait <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if next < f.first {
		buf = append(buf, f.note("log lines were dropped for this reader", "dropped", int(f.first-next))...)
		next = f.first
	}
	for _, line := range f.lines[next-f.first:] {
		if len(buf) > 0 && len(buf)+len(line) > batch {
			break
		}
		buf = append(buf, line...)
		next++
	}
	return buf, next, f.changed
}

// start is the number of the oldest line that is kept.
func (f *Fanout) start() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.first
}

// copyTo sends conn the lines that are kept, then each new one, until ctx ends or a write fails.
func (f *Fanout) copyTo(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // wakes a write that waits for the reader
	next := f.start()
	buf := make([]byte, 0, batch)
	for {
		var wait <-chan struct{}
		buf, next, wait = f.read(buf[:0], next)
		if len(buf) > 0 {
			if _, err := conn.Write(buf); err != nil {
				return // it has gone, or ctx has ended
			}
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return
		}
	}
}

// reader is a connection that is being served.
type reader struct {
	done interface{ Err() error } // not nil once it is over
	stop context.CancelFunc
}

// Serve lets readers connect to l until ctx ends or l fails; it closes l and every connection and then returns, with nil
// if ctx has ended. A reader gets the lines that are kept, then each new one; what it sends is not read. Of more than
// four readers the one that came first is cut off: one that has gone is not noticed before the next line.
func (f *Fanout) Serve(ctx context.Context, l net.Listener) error {
	var readers sync.WaitGroup
	defer readers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()

	var open []reader
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close() // too late
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept log reader: %w", err)
		case err != nil:
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		open = slices.DeleteFunc(open, func(r reader) bool { return r.done.Err() != nil })
		if len(open) == maxReaders {
			open[0].stop()
		}
		readerCtx, stop := context.WithCancel(ctx)
		open = append(open, reader{readerCtx, stop})
		readers.Go(func() {
			defer stop()
			f.copyTo(readerCtx, conn)
		})
	}
}
