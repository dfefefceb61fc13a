// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package replay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
)

const (
	// readSize is what the shim asks for at once, in bytes.
	readSize = 32 << 10
	// maxOutput bounds what a loop keeps, in bytes.
	maxOutput = 64 << 20
)

// outcome is what a call or loop came to.
type outcome struct {
	// response is the last answer, and err the error of the RPC.
	response proto.Message
	err      error
	// output is what a stream gave, or the answers of a loop as JSON, one a line; answers is their number.
	output  []byte
	answers int
}

// job is a call or loop in the background.
type job struct {
	rpc  string
	stop context.CancelFunc
	done chan struct{} // closed at the end

	mu      sync.Mutex
	outcome outcome
	changed chan struct{} // closed at a change of outcome
}

type caller func(ctx context.Context) (proto.Message, error)

// start runs a body in the background; it returns the error of the RPC that ended it.
func start(ctx context.Context, rpc string, body func(ctx context.Context, j *job) error) *job {
	ctx, cancel := context.WithCancel(ctx)
	j := &job{rpc: rpc, stop: cancel, done: make(chan struct{}), changed: make(chan struct{})}
	go func() {
		defer cancel()
		err := body(ctx, j)
		j.mu.Lock()
		j.outcome.err = err
		j.mu.Unlock()
		close(j.done)
	}()
	return j
}

// add notes an answer.
func (j *job) add(response proto.Message, output []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	o := &j.outcome
	o.response = response
	o.answers++
	o.output = append(o.output, output...)
	close(j.changed)
	j.changed = make(chan struct{})
	if len(o.output) > maxOutput {
		return fmt.Errorf("more than %d bytes of output", maxOutput)
	}
	return nil
}

// once is the body of a single call.
func once(send caller) func(context.Context, *job) error {
	return func(ctx context.Context, j *job) error {
		response, err := send(ctx)
		if err != nil {
			return err
		}
		return j.add(response, nil)
	}
}

// stream is the body of a loop that reads a stream as the shim does: no data are the end.
func stream(send caller) func(context.Context, *job) error {
	return func(ctx context.Context, j *job) error {
		for {
			response, err := send(ctx)
			if err != nil {
				return err
			}
			data, ok := response.(interface{ GetData() []byte })
			if !ok {
				return errors.New("the answer holds no data")
			}
			if err := j.add(response, data.GetData()); err != nil || len(data.GetData()) == 0 {
				return err
			}
		}
	}
}

// repeated is the body of a loop that calls until an error, or its stop, which is none.
func repeated(send caller, every time.Duration) func(context.Context, *job) error {
	return func(ctx context.Context, j *job) error {
		for {
			response, err := send(ctx)
			switch {
			case ctx.Err() != nil:
				return nil //nolint:nilerr // it was stopped
			case err != nil:
				return err
			}
			value, err := plain(response)
			if err == nil {
				err = j.add(response, []byte(text(value)+"\n"))
			}
			if err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(every):
			}
		}
	}
}

// ended tells whether the job has.
func (j *job) ended() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// result returns what the job has come to so far.
func (j *job) result() outcome {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.outcome
}

// wait waits for the end.
func (j *job) wait(ctx context.Context) (outcome, error) {
	select {
	case <-j.done:
		return j.result(), nil
	case <-ctx.Done():
		o := j.result()
		return o, fmt.Errorf("%s has not ended: %w (%d answers, output %q)", j.rpc, context.Cause(ctx), o.answers, shorten(string(o.output)))
	}
}

// until waits for a text in the output.
func (j *job) until(ctx context.Context, text string) error {
	return j.await(ctx, fmt.Sprintf("%q", text), func(o outcome) bool { return bytes.Contains(o.output, []byte(text)) })
}

// atLeast waits for a number of answers.
func (j *job) atLeast(ctx context.Context, answers int) error {
	return j.await(ctx, fmt.Sprintf("%d answers", answers), func(o outcome) bool { return o.answers >= answers })
}

// await waits until the outcome is one with what is described by a text.
func (j *job) await(ctx context.Context, what string, holds func(outcome) bool) error {
	for {
		ended := j.ended() // before the look at the outcome, which then does not change any more
		j.mu.Lock()
		found, changed, o := holds(j.outcome), j.changed, j.outcome
		j.mu.Unlock()
		switch {
		case found:
			return nil
		case ended:
			return fmt.Errorf("%s has ended (%s) without %s: output %q", j.rpc, describe(o.err), what, shorten(string(o.output)))
		}
		select {
		case <-changed:
		case <-j.done:
		case <-ctx.Done():
			return fmt.Errorf("%s has not given %s: %w: output %q", j.rpc, what, context.Cause(ctx), shorten(string(o.output)))
		}
	}
}
