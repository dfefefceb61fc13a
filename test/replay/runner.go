// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package replay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cloister-cc/cloister/client"
)

// patience bounds each step. It says nothing of how fast an agent has to be: a guest under emulation is slow.
const patience = 2 * time.Minute

// Runner plays sequences against one agent, one after the other. What a sandbox's begin starts in the background is there
// for all that follow. It is not for concurrent use.
type Runner struct {
	client *client.Client
	where  string
	vars   map[string]string
	ctx    context.Context //nolint:containedctx // of what runs in the background from one sequence to the next
	cancel context.CancelFunc
	jobs   map[string]*job
}

// NewRunner makes a runner for an agent in a place, Process or Guest. The variables hold for all sequences.
func NewRunner(ctx context.Context, c *client.Client, where string, vars map[string]string) *Runner {
	ctx, cancel := context.WithCancel(ctx)
	return &Runner{client: c, where: where, vars: vars, ctx: ctx, cancel: cancel, jobs: make(map[string]*job)}
}

// Close ends what still runs in the background and waits for it.
func (r *Runner) Close() {
	r.cancel()
	for _, j := range r.jobs {
		<-j.done
	}
}

// Run plays a sequence with further variables. The error names sequence, step, RPC and difference.
func (r *Runner) Run(ctx context.Context, s *Sequence, vars map[string]string) error {
	for i := range s.Steps {
		step := &s.Steps[i]
		if step.Only != "" && step.Only != r.where {
			continue
		}
		all := maps.Clone(r.vars)
		maps.Copy(all, vars)
		set, err := expandMap(step.vars, all)
		maps.Copy(all, set)
		if err == nil {
			err = r.step(ctx, step, all)
		}
		if err != nil {
			what := step.what()
			if expanded, err := expand(what, all); err == nil {
				what = expanded
			}
			return fmt.Errorf("%s: step %s: %s: %w", s.Name, step.label, what, err)
		}
	}
	return nil
}

func expandMap(in, vars map[string]string) (map[string]string, error) {
	out := make(map[string]string, len(in))
	for key, value := range in {
		var err error
		if out[key], err = expand(value, vars); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (r *Runner) step(ctx context.Context, s *Step, vars map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	switch {
	case s.rpc() != "" && s.As != "":
		return r.background(s, vars)
	case s.Call != "":
		request, err := requestOf(s.Call, s.Request, vars)
		if err != nil {
			return err
		}
		response, err := call(ctx, r.client, s.Call, request)
		return s.Want.check(outcome{response: response, err: err}, vars)
	case s.Await != "":
		return r.await(ctx, s, vars)
	case s.Stop != "":
		return r.stop(ctx, s, vars)
	}
	for _, name := range s.Blocked {
		j, err := r.find(name, vars)
		if err != nil {
			return err
		}
		if j.ended() {
			o := j.result()
			return fmt.Errorf("%s has ended: %s, output %q", j.rpc, describe(o.err), shorten(string(o.output)))
		}
	}
	return nil
}

// background starts a call or loop.
func (r *Runner) background(s *Step, vars map[string]string) error {
	name, err := expand(s.As, vars)
	if err != nil {
		return err
	}
	if r.jobs[name] != nil {
		return fmt.Errorf("there is a %q already", name)
	}
	value := s.Request
	if s.Read != "" {
		if value, err = merge(value, map[string]any{"len": readSize}); err != nil {
			return err
		}
	}
	request, err := requestOf(s.rpc(), value, vars)
	if err != nil {
		return err
	}
	send := func(ctx context.Context) (proto.Message, error) { return call(ctx, r.client, s.rpc(), request) }
	body := once(send)
	switch {
	case s.Read != "":
		body = stream(send)
	case s.Repeat != "":
		body = repeated(send, time.Duration(s.EveryMS)*time.Millisecond)
	}
	r.jobs[name] = start(r.ctx, s.rpc(), body)
	return nil
}

func (r *Runner) await(ctx context.Context, s *Step, vars map[string]string) error {
	j, err := r.find(s.Await, vars)
	if err != nil {
		return err
	}
	if s.Until != "" {
		text, err := expand(s.Until, vars)
		if err != nil {
			return err
		}
		return j.until(ctx, text)
	}
	o, err := j.wait(ctx)
	if err != nil {
		return err
	}
	if err := s.Want.check(o, vars); err != nil {
		return fmt.Errorf("%s: %w", j.rpc, err)
	}
	return nil
}

// stop ends a loop once it has got as many answers as it shall at least.
func (r *Runner) stop(ctx context.Context, s *Step, vars map[string]string) error {
	j, err := r.find(s.Stop, vars)
	if err != nil {
		return err
	}
	if err := j.atLeast(ctx, s.Want.AtLeast); err != nil {
		return err
	}
	j.stop()
	o, err := j.wait(ctx)
	if err != nil {
		return err
	}
	return s.Want.check(o, vars)
}

func (r *Runner) find(name string, vars map[string]string) (*job, error) {
	name, err := expand(name, vars)
	if err != nil {
		return nil, err
	}
	j := r.jobs[name]
	if j == nil {
		return nil, fmt.Errorf("nothing is called %q", name)
	}
	return j, nil
}

// check says where an outcome differs from what was wanted.
func (w *Want) check(o outcome, vars map[string]string) error {
	code, err := parseCode(w.Code)
	if err != nil {
		return err
	}
	want, err := expand(w.Text, vars)
	if err != nil {
		return err
	}
	if got := status.Code(o.err); got != code || (o.err != nil && !strings.Contains(status.Convert(o.err).Message(), want)) {
		return fmt.Errorf("it came to %s, want %s %q", describe(o.err), codeName(code), want)
	}
	if o.answers < w.AtLeast {
		return fmt.Errorf("%d answers, want %d at least", o.answers, w.AtLeast)
	}
	if w.Response != nil {
		if err := w.checkResponse(o, vars); err != nil {
			return err
		}
	}
	return w.checkOutput(o.output, vars)
}

func (w *Want) checkResponse(o outcome, vars map[string]string) error {
	if o.response == nil {
		return errors.New("there is no answer")
	}
	want, err := expandAll(w.Response, vars)
	if err != nil {
		return err
	}
	got, err := plain(o.response)
	if err != nil {
		return err
	}
	if d := diff("answer", got, want); d != "" {
		return errors.New(d)
	}
	return nil
}

func (w *Want) checkOutput(output []byte, vars map[string]string) error {
	if w.Output != nil {
		want, err := expand(*w.Output, vars)
		if err != nil {
			return err
		}
		if string(output) != want {
			return fmt.Errorf("output is %q, want %q", shorten(string(output)), want)
		}
	}
	for _, part := range w.Contains {
		want, err := expand(part, vars)
		if err != nil {
			return err
		}
		if !strings.Contains(string(output), want) {
			return fmt.Errorf("output is %q, want %q in it", shorten(string(output)), want)
		}
	}
	if w.Bytes != nil && len(output) != *w.Bytes {
		return fmt.Errorf("output is %d bytes, want %d", len(output), *w.Bytes)
	}
	if w.SHA256 != "" {
		sum := sha256.Sum256(output)
		if got := hex.EncodeToString(sum[:]); got != w.SHA256 {
			return fmt.Errorf("output of %d bytes has the SHA-256 %s, want %s", len(output), got, w.SHA256)
		}
	}
	return nil
}
