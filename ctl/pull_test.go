// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/agenttest"
)

// puller is a guest whose metrics say one thing after another, and whose container is created once all have been said.
type puller struct {
	*pod
	agenttest.Machine
	said chan struct{} // closed then

	mu     sync.Mutex
	script []string
}

func newPuller(script ...string) *puller {
	return &puller{pod: newPod(), said: make(chan struct{}), script: script}
}

// Metrics returns the next text, and the last one for ever.
func (p *puller) Metrics() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.script) == 0 {
		return "", errTest
	}
	text := p.script[0]
	if len(p.script) > 1 {
		if p.script = p.script[1:]; len(p.script) == 1 {
			close(p.said)
		}
	}
	return text, nil
}

func (p *puller) CreateContainer(ctx context.Context, c agent.ContainerConfig) error {
	if err := p.call("create %s %s %q", c.ID, c.Storages[0].Source, c.Spec.Process.Args); err != nil {
		return err
	}
	select {
	case <-p.said:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// metricsText is what an agent says of pulls: "digest fetched total done layers" each.
func metricsText(fetched int, pulls ...string) string {
	var bytes, layers strings.Builder
	for _, pull := range pulls {
		f := strings.Fields(pull)
		fmt.Fprintf(&bytes, "cloister_agent_image_pull_bytes{digest=%q,item=\"fetched\"} %s\n", f[0], f[1])
		fmt.Fprintf(&bytes, "cloister_agent_image_pull_bytes{digest=%q,item=\"total\"} %s\n", f[0], f[2])
		fmt.Fprintf(&layers, "cloister_agent_image_pull_layers{digest=%q,item=\"done\"} %s\n", f[0], f[3])
		fmt.Fprintf(&layers, "cloister_agent_image_pull_layers{digest=%q,item=\"total\"} %s\n", f[0], f[4])
	}
	return "# TYPE cloister_agent_image_pull_bytes gauge\n" + bytes.String() + "# TYPE cloister_agent_image_pull_layers gauge\n" + layers.String() +
		fmt.Sprintf("# TYPE cloister_agent_image_fetched_bytes_total counter\ncloister_agent_image_fetched_bytes_total %d\n", fetched)
}

func TestPull(t *testing.T) {
	t.Parallel()
	const other = "sha256:other 5 100 0 1"
	for name, tt := range map[string]struct {
		script   []string
		progress []PullProgress
		want     Pulled
	}{
		"alone": {
			script: []string{
				metricsText(7), metricsText(7), metricsText(9, "sha256:a 2 40 1 3"), metricsText(39, "sha256:a 32 40 2 3"), metricsText(47),
			},
			progress: []PullProgress{{"sha256:a", 2, 40, 1, 3}, {"sha256:a", 32, 40, 2, 3}},
			want:     Pulled{Digest: "sha256:a", Layers: 3, Bytes: 40},
		},
		"beside another": {
			script:   []string{metricsText(7, other), metricsText(9, other, "sha256:a 2 40 1 3"), metricsText(400, other)},
			progress: []PullProgress{{"sha256:a", 2, 40, 1, 3}},
			want:     Pulled{Digest: "sha256:a", Layers: 3, Bytes: 40},
		},
		"two new ones": {
			script:   []string{metricsText(0), metricsText(9, "sha256:b 1 2 3 4", "sha256:a 2 40 1 3"), metricsText(50)},
			progress: []PullProgress{{"", 3, 42, 4, 7}},
			want:     Pulled{Bytes: 50},
		},
		"joins":   {script: []string{metricsText(10, other), metricsText(20, other), metricsText(30)}, progress: []PullProgress{{"", 5, 100, 0, 1}}, want: Pulled{Bytes: 20}},
		"there":   {script: []string{metricsText(10), metricsText(10)}},
		"restart": {script: []string{metricsText(10), metricsText(0)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPuller(tt.script...)
			s := newSessionOf(t, p, p)
			var progress []PullProgress
			got, err := s.pull(t.Context(), "r/i:1", "pod", func(p PullProgress) { progress = append(progress, p) }, time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if got.Took <= 0 {
				t.Errorf("it took %s", got.Took)
			}
			got.Took = 0
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			// The answer to the creation may come after some more questions.
			for len(progress) > len(tt.progress) && progress[len(progress)-1] == progress[len(progress)-2] {
				progress = progress[:len(progress)-1]
			}
			if diff := cmp.Diff(tt.progress, progress); diff != "" {
				t.Errorf("progress (-want +got):\n%s", diff)
			}
			calls := p.calls()
			id := regexp.MustCompile("^create (pull-[0-9a-z]{10}) ").FindStringSubmatch(calls[0])
			if id == nil {
				t.Fatalf("calls %q", calls)
			}
			if diff := cmp.Diff([]string{"create " + id[1] + ` r/i:1 ["/proc/self/exe"]`, "remove " + id[1]}, calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

// A guest that tells nothing about progress pulls nevertheless.
func TestPullWithoutMetrics(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ text, want string }{
		"none": {"", "the agent has no metric"}, "of another agent": {"x 1\n", "the agent has no metric"}, "garbage": {"{{{\n", "read metrics"},
		"total of another type": {"# TYPE cloister_agent_image_fetched_bytes_total gauge\n", "the agent has no metric"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPuller(tt.text)
			close(p.said)
			got, err := newSessionOf(t, p, p).Pull(t.Context(), "r/i:1", "pod", func(p PullProgress) { t.Errorf("progress %+v", p) })
			if err != nil || got.Unknown == nil || !strings.Contains(got.Unknown.Error(), tt.want) || got.Bytes != 0 {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestPullFails(t *testing.T) {
	t.Parallel()
	for fail, removed := range map[string]bool{"create": false, "remove": true} {
		p := newPuller(metricsText(0), metricsText(0))
		p.fail = fail
		_, err := newSessionOf(t, p, p).pull(t.Context(), "r/i:1", "pod", nil, time.Millisecond)
		if err == nil || !strings.Contains(err.Error(), errTest.Error()) {
			t.Errorf("%s: error %v", fail, err)
		}
		if got := slices.ContainsFunc(p.calls(), func(call string) bool { return strings.HasPrefix(call, "remove") }); got != removed {
			t.Errorf("%s: calls %q", fail, p.calls())
		}
	}
	p := newPuller(metricsText(0))
	if _, err := newSessionOf(t, p, p).Pull(t.Context(), "", "pod", nil); err == nil || len(p.calls()) != 0 {
		t.Errorf("without an image: %v, calls %q", err, p.calls())
	}
}

// Where the user does not wait for the end, no container stays, even if the guest does not know it yet when it is to be
// removed.
func TestPullInterrupted(t *testing.T) {
	t.Parallel()
	for name, early := range map[string]int{"removed": 0, "removed in the second attempt": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPuller(metricsText(0), metricsText(1, "sha256:a 1 40 0 3"), metricsText(1, "sha256:a 1 40 0 3"))
			g := &stuck{puller: p, early: early, removed: make(chan struct{})}
			ctx, cancel := context.WithCancel(t.Context())
			_, err := newSessionOf(t, g, p).pull(ctx, "r/i:1", "pod", func(PullProgress) { cancel() }, time.Millisecond)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			<-g.removed
			if calls := p.calls(); len(calls) != 2+early || !strings.HasPrefix(calls[1], "remove pull-") {
				t.Errorf("calls %q", calls)
			}
		})
	}
}

// stuck is a puller whose container is created until it is removed. Removals fail at first.
type stuck struct {
	*puller
	early   int
	removed chan struct{}
}

func (s *stuck) CreateContainer(_ context.Context, c agent.ContainerConfig) error {
	err := s.call("create %s", c.ID)
	<-s.removed
	return errors.Join(err, errors.New("it is removed"))
}

func (s *stuck) RemoveContainer(_ context.Context, id string, _ time.Duration) error {
	if err := s.call("remove %s", id); err != nil {
		return err
	}
	if s.early--; s.early >= 0 {
		return agent.ErrInvalidContainerID
	}
	close(s.removed)
	return nil
}

// TestPullNative pulls in a real sandbox: there must be one, and nothing is left in it.
func TestPullNative(t *testing.T) {
	b := newBed(t)
	_, err := b.Pull(t.Context(), "r/i:1", "pod", nil)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "the sandbox has not been created") {
		t.Errorf("without a sandbox: %v", err)
	}
	if err := b.CreateSandbox(t.Context(), "pod", "", nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.sandbox.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if _, err := b.Pull(t.Context(), "r/i:1", "pod", nil); err != nil {
		t.Error(err)
	}
	if n := b.sandbox.Containers(); n != 0 {
		t.Errorf("%d containers are left", n)
	}
}
