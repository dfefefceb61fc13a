// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// pullProcess is the process of the container that Pull creates. It never runs, but OCI runtimes look at create already
// whether the file is there, and this one is in every container that has a /proc: a link to the runtime itself.
const pullProcess = "/proc/self/exe"

// pullPoll is the time between two questions for the progress.
const pullPoll = 300 * time.Millisecond

// PullProgress is how far a pull is.
type PullProgress struct {
	// Digest is that of the image's manifest. It is empty where the pull cannot be told from others, as one that
	// has joined a pull that was under way: the numbers are then those of all pulls.
	Digest string
	// Bytes is how many of the Total bytes of the layers that the guest did not have are there. 0 of 0 means that the pull
	// has not come so far.
	Bytes, Total int64
	// LayersDone is how many of the image's Layers are there.
	LayersDone, Layers int
}

// Pulled is the result of a pull.
type Pulled struct {
	// Digest is as in PullProgress. Where it is empty, Layers is 0.
	Digest string
	Layers int
	// Bytes is how many bytes of layers the guest has fetched for it; where Digest is empty, how many it has fetched
	// meanwhile. 0 means that it had the image, unless Unknown is set.
	Bytes int64
	Took  time.Duration
	// Unknown says why the guest has told nothing about progress. It is nil if it has.
	Unknown error
}

// Pull has the guest pull an image into its store, so that the next container of it finds it there. The API has no
// request for that: Pull creates a container of the image, which never runs, and removes it; the layers stay. The sandbox
// must have been created; sandboxID is its id. In a sandbox that shares a PID namespace, that is the one of the first
// container, which therefore must not be this one. progress, if not nil, is called every now and then, from one goroutine,
// before Pull returns.
//
// When ctx ends first, the container is gone, but an agent of this project goes on with the pull for a while.
func (s *Session) Pull(ctx context.Context, image, sandboxID string, progress func(PullProgress)) (Pulled, error) {
	return s.pull(ctx, image, sandboxID, progress, pullPoll)
}

func (s *Session) pull(ctx context.Context, image, sandboxID string, progress func(PullProgress), every time.Duration) (done Pulled, err error) {
	start := time.Now()
	id := "pull-" + strings.ToLower(rand.Text()[:10])
	request, err := Container{ID: id, SandboxID: sandboxID, Image: image, Process: Process{Args: []string{pullProcess}}}.Request()
	if err != nil {
		return Pulled{}, err
	}
	w := pullWatch{agent: s.agent}
	w.begin(ctx)
	creation, cancel := context.WithCancel(context.WithoutCancel(ctx)) // it is ended by its removal
	defer cancel()
	created := make(chan error, 1)
	go func() {
		_, err := ask(creation, s, "CreateContainer("+id+")", s.agent.CreateContainer, request)
		created <- err
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case err = <-created:
			waiting = false
		case <-ctx.Done():
			s.interruptPull(ctx, id, created)
			return Pulled{}, fmt.Errorf("pull %s: %w", image, ctx.Err())
		case <-tick.C:
			if p, ok := w.look(ctx); ok && progress != nil {
				progress(p)
			}
		}
	}
	if err == nil {
		s.cleanUp(ctx, &err, func(ctx context.Context) error { return s.RemoveContainer(ctx, id) })
	}
	if err != nil {
		return Pulled{}, err
	}
	w.end(ctx)
	w.done.Took = time.Since(start)
	return w.done, nil
}

// interruptPull removes a container that is being created, or just has been.
func (s *Session) interruptPull(ctx context.Context, id string, created <-chan error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	again := time.NewTicker(pullPoll)
	defer again.Stop()
	for {
		err := s.RemoveContainer(ctx, id)
		if err == nil {
			return
		}
		select { // the removal came too early, or there is nothing to remove
		case failure := <-created:
			if failure != nil {
				return
			}
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

// Names of the agent's metrics, see its package metrics.
const (
	metricPullBytes  = "cloister_agent_image_pull_bytes"
	metricPullLayers = "cloister_agent_image_pull_layers"
	metricFetched    = "cloister_agent_image_fetched_bytes_total"
)

// pullWatch follows a pull by the guest's metrics, which know pulls by the digests of their manifests alone.
type pullWatch struct {
	agent pb.AgentServiceService
	// before has the pulls that were under way when this one was asked for.
	before  map[string]PullProgress
	fetched float64 // by all pulls before
	last    PullProgress
	done    Pulled
}

// begin looks at what there is before the pull.
func (w *pullWatch) begin(ctx context.Context) {
	w.before, w.fetched, w.done.Unknown = readPulls(ctx, w.agent)
}

// look returns how far the pull is, if that can be told.
func (w *pullWatch) look(ctx context.Context) (PullProgress, bool) {
	if w.done.Unknown != nil {
		return PullProgress{}, false
	}
	now, _, err := readPulls(ctx, w.agent)
	if err != nil {
		if ctx.Err() == nil {
			w.done.Unknown = err
		}
		return PullProgress{}, false
	}
	p, ok := w.own(now)
	if ok {
		w.last = p
	}
	return p, ok
}

// own returns the pull among those under way which is this one: the only new one. Where that does not decide, it returns
// all of them together without a digest: this one may have joined one of them, or have found all layers there.
func (w *pullWatch) own(now map[string]PullProgress) (PullProgress, bool) {
	if w.last.Digest != "" { // known from before, and perhaps over
		p, ok := now[w.last.Digest]
		return p, ok
	}
	var all, added PullProgress
	n := 0
	for digest, p := range now {
		all.Bytes, all.Total = all.Bytes+p.Bytes, all.Total+p.Total
		all.LayersDone, all.Layers = all.LayersDone+p.LayersDone, all.Layers+p.Layers
		if _, old := w.before[digest]; !old {
			added = p
			n++
		}
	}
	if n == 1 {
		return added, true
	}
	return all, len(now) > 0
}

// end looks at what the pull has done.
func (w *pullWatch) end(ctx context.Context) {
	if w.done.Unknown != nil {
		return
	}
	if w.last.Digest != "" {
		w.done.Digest, w.done.Layers = w.last.Digest, w.last.Layers
		w.done.Bytes = w.last.Total // what counts for all pulls may be others'
		return
	}
	_, fetched, err := readPulls(ctx, w.agent)
	w.done.Unknown = err
	w.done.Bytes = int64(max(fetched-w.fetched, 0))
}

// readPulls asks the guest for the pulls under way, by digest, and for the bytes that all pulls have fetched. It is not
// a step: a pull asks often.
func readPulls(ctx context.Context, agent pb.AgentServiceService) (map[string]PullProgress, float64, error) {
	r, err := agent.GetMetrics(ctx, &pb.GetMetricsRequest{})
	if err != nil {
		return nil, 0, fmt.Errorf("GetMetrics: %w", err)
	}
	pulls, fetched, err := parsePulls(r.GetMetrics())
	if err != nil {
		return nil, 0, fmt.Errorf("GetMetrics: %w", err)
	}
	return pulls, fetched, nil
}

// parsePulls finds the pulls in an agent's metrics.
func parsePulls(text string) (map[string]PullProgress, float64, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return nil, 0, fmt.Errorf("read metrics: %w", err)
	}
	total := families[metricFetched].GetMetric()
	if len(total) != 1 {
		return nil, 0, fmt.Errorf("the agent has no metric %s", metricFetched)
	}
	pulls := make(map[string]PullProgress)
	for _, name := range []string{metricPullBytes, metricPullLayers} {
		for _, m := range families[name].GetMetric() {
			digest := labelOf(m, "digest")
			p := pulls[digest]
			p.Digest = digest
			value := m.GetGauge().GetValue()
			switch name + " " + labelOf(m, "item") {
			case metricPullBytes + " fetched":
				p.Bytes = int64(value)
			case metricPullBytes + " total":
				p.Total = int64(value)
			case metricPullLayers + " done":
				p.LayersDone = int(value)
			case metricPullLayers + " total":
				p.Layers = int(value)
			}
			pulls[digest] = p
		}
	}
	return pulls, total[0].GetCounter().GetValue(), nil
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}
