// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package attest

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Bounds of a log. The host can cause events by asking for image after image.
const (
	// MaxEvents is how many events a log takes.
	MaxEvents = 1000
	// MaxField bounds each field of an event, in bytes.
	MaxField = 2048
	// maxBytes bounds the lines of a log together.
	maxBytes = 256 << 10
)

// Errors that callers tell apart.
var (
	// ErrFull means that the log takes no further event.
	ErrFull = errors.New("the log of events is full")
	// ErrEvent means that something is no event: its line could be read as another.
	ErrEvent = errors.New("not an event")
)

// Event is what has happened. No field is empty, has more than MaxField bytes, or others than the printable ones of ASCII;
// the space is not among them.
type Event struct {
	// Domain says who defines the operation, for instance "github.com/confidential-containers".
	Domain string
	// Operation is what has happened, and Content to what, in a form that the domain defines.
	Operation, Content string
}

// String returns the event's line in the log, without a newline.
func (e Event) String() string { return e.Domain + " " + e.Operation + " " + e.Content }

// initLine is the first line of a log: it has the value of the register before it.
const (
	initLine = "INIT sha384/" + zeros32 + zeros32 + zeros32
	zeros32  = "00000000000000000000000000000000"
)

func (e Event) check() error {
	for name, field := range map[string]string{"domain": e.Domain, "operation": e.Operation, "content": e.Content} {
		printable := strings.IndexFunc(field, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
		if field == "" || len(field) > MaxField || !printable {
			return fmt.Errorf("%w: its %s is empty, has more than %d bytes, or others than printable ASCII: %.100q", ErrEvent, name, MaxField, field)
		}
	}
	return nil
}

// Log is a list of events that only grows. The zero value is not ready, see NewLog. It may be used from many goroutines.
type Log struct {
	mu     sync.Mutex
	events []Event
	seen   map[Event]bool
	size   int
	digest [sha512.Size384]byte
}

// NewLog returns a log without events.
func NewLog() *Log {
	return &Log{seen: make(map[Event]bool), digest: extend([sha512.Size384]byte{}, initLine)}
}

// Append records an event, unless it is in the log already. On error, which is ErrFull or ErrEvent, it is not recorded,
// and what it tells of must not happen.
func (l *Log) Append(e Event) error {
	if err := e.check(); err != nil {
		return err
	}
	line := e.String()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[e] {
		return nil
	}
	if len(l.events) >= MaxEvents || l.size+len(line) > maxBytes {
		return fmt.Errorf("%w: it has %d events in %d bytes, at most %d in %d are allowed", ErrFull, len(l.events), l.size, MaxEvents, maxBytes)
	}
	l.events = append(l.events, e)
	l.seen[e] = true
	l.size += len(line)
	l.digest = extend(l.digest, line)
	return nil
}

// Digest returns what the log has come to: SHA-384(digest before || SHA-384(line)) over its lines, of which the first is
// "INIT sha384/" and 96 zeros, and the digest before it 48 zero bytes.
func (l *Log) Digest() [sha512.Size384]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.digest
}

// Events returns the events in their order.
func (l *Log) Events() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// extend returns the register after a line.
func extend(register [sha512.Size384]byte, line string) [sha512.Size384]byte {
	of := sha512.Sum384([]byte(line))
	return sha512.Sum384(append(register[:], of[:]...))
}
