// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
)

// calls are what a shim may ask for at any time, of one of a few containers. Those that bring something to life come more
// often, since they depend on more.
func (b *bed) calls(r *rand.Rand) []func(ctx context.Context, id, execID string) error {
	calls := []func(ctx context.Context, id, execID string) error{
		func(ctx context.Context, id, _ string) error {
			return b.CreateContainer(ctx, config(id, "echo out; exec sleep 1000"))
		},
		func(ctx context.Context, id, _ string) error { return b.StartContainer(ctx, id) },
		func(ctx context.Context, id, execID string) error {
			return b.Exec(ctx, id, execID, shell("echo out; exec sleep 1000"))
		},
		func(ctx context.Context, id, execID string) error {
			return b.Exec(ctx, id, execID, terminal("exec true"))
		},
		func(ctx context.Context, id, execID string) error {
			return b.Signal(ctx, id, execID, []int{0, 9, 15}[r.IntN(3)])
		},
		func(ctx context.Context, id, _ string) error {
			return b.Signal(ctx, id, "", []int{0, 9, 15}[r.IntN(3)])
		},
		func(ctx context.Context, id, _ string) error { return b.PauseContainer(ctx, id) },
		func(ctx context.Context, id, _ string) error { return b.ResumeContainer(ctx, id) },
		func(ctx context.Context, id, _ string) error { return b.RemoveContainer(ctx, id, 0) },
		func(ctx context.Context, id, _ string) error {
			return b.UpdateContainer(ctx, id, &specs.LinuxResources{})
		},
		func(ctx context.Context, id, execID string) error { _, err := b.Wait(ctx, id, execID); return err },
		func(ctx context.Context, id, execID string) error {
			_, err := b.ReadStdout(ctx, id, execID, 10)
			return err
		},
		func(ctx context.Context, id, execID string) error {
			return b.WriteStdin(ctx, id, execID, []byte("in\n"))
		},
		func(ctx context.Context, id, execID string) error { return b.CloseStdin(ctx, id, execID) },
	}
	for range 3 {
		calls = append(calls, calls[:4]...)
	}
	return calls
}

// TestAnyOrder: callers ask for anything at any time and go away in the middle of it. Seen: no call hangs or breaks the
// rules of the others, the sandbox is not tainted, and nothing is left in the end.
func TestAnyOrder(t *testing.T) {
	b := running(t)
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // emulated machines are slow
	defer cancel()
	var wg sync.WaitGroup
	for n := range 8 {
		r := rand.New(rand.NewPCG(seed, uint64(n)))
		calls := b.calls(r)
		wg.Go(func() {
			for range 500 {
				id, execID := fmt.Sprintf("c%d", r.IntN(5)), fmt.Sprintf("e%d", r.IntN(3))
				ctx, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(40))*time.Millisecond)
				err := calls[r.IntN(len(calls))](ctx, id, execID)
				cancel()
				if errors.Is(err, agent.ErrTainted) {
					t.Errorf("%s: %v", id, err)
				}
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		t.Fatal(err)
	}
	if err := b.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	b.wantEmpty(t)
}
