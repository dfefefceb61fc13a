// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"cmp"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/store"
)

// Pull is a pull that is under way.
type Pull struct {
	// Reference is the one of the Mount that began the pull, in its canonical form. It comes from the host.
	Reference string
	// Manifest is the digest of the image's manifest.
	Manifest string
	// Bytes is how many of the Total bytes, which the layers that were not in the store at the beginning have in the
	// registry, have come. A layer that several pulls want counts in each of them. Where a mirror had something wrong and a
	// layer is fetched anew, its bytes count anew.
	Bytes, Total int64
	// Unpacked is how many bytes these layers have uncompressed, as far as they have come.
	Unpacked int64
	// LayersDone is how many of the image's Layers are in the store.
	LayersDone, Layers int
	Started            time.Time
}

// Totals count what a service has done so far.
type Totals struct {
	// Fetched is the number of bytes of layers that have come from registries, also of those that were wrong. What is sent
	// again because a server does not do ranges is left out. Unpacked is how many bytes layers have had uncompressed.
	Fetched, Unpacked int64
	// Pulled counts images of which layers were fetched, Cached those whose layers were all in the store, and Failed those
	// that could not be had, for whatever reason. Many who want the same image at the same time are one.
	Pulled, Cached, Failed int64
	// Reused counts layers that a pull found in the store.
	Reused int64
}

// Progress returns the pulls that are under way, the oldest first.
func (s *Service) Progress() []Pull {
	s.tracker.mu.Lock()
	pulls := make([]Pull, 0, len(s.tracker.pulls))
	for p := range s.tracker.pulls {
		pulls = append(pulls, p.snapshot())
	}
	s.tracker.mu.Unlock()
	slices.SortFunc(pulls, func(a, b Pull) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Reference, b.Reference), cmp.Compare(a.Manifest, b.Manifest))
	})
	return pulls
}

// Totals returns what the service has done so far.
func (s *Service) Totals() Totals {
	t := &s.tracker
	return Totals{
		Fetched: t.fetched.Load(), Unpacked: t.unpacked.Load(),
		Pulled: t.pulled.Load(), Cached: t.cached.Load(), Failed: t.failed.Load(), Reused: t.reused.Load(),
	}
}

// Space returns about how many bytes the layers in the store take, and what the file system says that they lie on.
func (s *Service) Space() (layers int64, space store.Space, err error) {
	space, err = s.store.Space()
	return s.store.Size(), space, err
}

// tracker knows how far pulls are. The zero value is ready.
type tracker struct {
	fetched, unpacked, pulled, cached, failed, reused atomic.Int64

	mu     sync.Mutex
	pulls  map[*pulling]struct{}
	layers map[string]*layerProgress // of these pulls, by flightID: who shares the pull of a layer shares its progress
}

// layerProgress is how far a layer is.
type layerProgress struct {
	tracker           *tracker
	id                string // its flightID
	pulls             int    // that want it, guarded by the tracker's mutex
	fetched, unpacked atomic.Int64
}

// blob counts what is read of a layer's blob, which is read from its beginning.
func (l *layerProgress) blob(rc io.ReadCloser) io.ReadCloser {
	l.fetched.Store(0)
	l.unpacked.Store(0)
	return struct {
		io.Reader
		io.Closer
	}{countReader{rc, &l.fetched, &l.tracker.fetched}, rc}
}

// tar counts what is read of a layer uncompressed.
func (l *layerProgress) tar(r io.Reader) io.Reader {
	return countReader{r, &l.unpacked, &l.tracker.unpacked}
}

// countReader adds what is read to two counters.
type countReader struct {
	r          io.Reader
	layer, all *atomic.Int64
}

// Read implements io.Reader.
func (c countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.layer.Add(int64(n))
	c.all.Add(int64(n))
	return n, err
}

// layer returns the progress of a layer that a pull is about to fetch.
func (t *tracker) layer(l registry.Layer) *layerProgress {
	id := flightID(l)
	t.mu.Lock()
	defer t.mu.Unlock()
	if have, ok := t.layers[id]; ok {
		return have
	}
	return &layerProgress{tracker: t, id: id} // nobody asks for it
}

// pulling is a pull that is under way.
type pulling struct {
	tracker   *tracker
	reference string
	image     *registry.Image
	started   time.Time
	layers    []pullingLayer // one for each of the image
	fetches   bool           // layers were missing at the beginning
	ready     bool           // it has succeeded
	stop      chan struct{}  // ends the log of it
	logged    sync.WaitGroup
}

// pullingLayer is a layer of a pull.
type pullingLayer struct {
	*layerProgress
	size    int64
	missing bool // it was not in the store at the beginning, and is no duplicate
	done    atomic.Bool
}

// begin tells of a pull. inStore says whether the store has a layer. The caller ends it.
func (t *tracker) begin(ref registry.Reference, img *registry.Image, inStore func(digest.Digest) (store.Layer, bool), log *slog.Logger) *pulling {
	p := &pulling{
		tracker: t, reference: ref.String(), image: img, started: time.Now(), layers: make([]pullingLayer, len(img.Layers)), stop: make(chan struct{}),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := make(map[string]bool)
	for i, l := range img.Layers {
		id := flightID(l)
		progress, ok := t.layers[id]
		if !ok {
			progress = &layerProgress{tracker: t, id: id}
			if t.layers == nil {
				t.layers = make(map[string]*layerProgress)
			}
			t.layers[id] = progress
		}
		progress.pulls++
		_, here := inStore(l.Descriptor.Digest)
		layer := &p.layers[i]
		layer.layerProgress, layer.size, layer.missing = progress, l.Descriptor.Size, !here && !seen[id]
		p.fetches = p.fetches || layer.missing
		if here && !seen[id] {
			t.reused.Add(1)
		}
		seen[id] = true
	}
	if t.pulls == nil {
		t.pulls = make(map[*pulling]struct{})
	}
	t.pulls[p] = struct{}{}
	if p.fetches { // the others are over at once
		p.logged.Go(func() { p.log(log) })
	}
	return p
}

// done says that a layer of the image is in the store.
func (p *pulling) done(i int) { p.layers[i].done.Store(true) }

// end tells that the pull is over, with success if ready is set.
func (p *pulling) end() {
	close(p.stop)
	p.logged.Wait()
	t := p.tracker
	if p.ready && p.fetches {
		t.pulled.Add(1)
	} else if p.ready {
		t.cached.Add(1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.pulls, p)
	for i := range p.layers {
		l := p.layers[i].layerProgress
		if l.pulls--; l.pulls == 0 {
			delete(t.layers, l.id)
		}
	}
}

// snapshot returns how far the pull is.
func (p *pulling) snapshot() Pull {
	out := Pull{Reference: p.reference, Manifest: p.image.Manifest.String(), Layers: len(p.layers), Started: p.started}
	for i := range p.layers {
		l := &p.layers[i]
		done := l.done.Load()
		if done {
			out.LayersDone++
		}
		if !l.missing {
			continue
		}
		out.Total += l.size
		out.Unpacked += l.unpacked.Load()
		if done { // also where another pull has brought it
			out.Bytes += l.size
		} else {
			out.Bytes += min(l.fetched.Load(), l.size)
		}
	}
	return out
}

// progressPeriod is the time between two lines about a pull that takes long.
const progressPeriod = 5 * time.Second

// log writes a line every few seconds until the pull ends.
func (p *pulling) log(log *slog.Logger) {
	tick := time.NewTicker(progressPeriod)
	defer tick.Stop()
	last, lastBytes := p.started, int64(0)
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		now, s := time.Now(), p.snapshot()
		rate := float64(max(s.Bytes-lastBytes, 0)) / max(now.Sub(last).Seconds(), 0.001)
		last, lastBytes = now, s.Bytes
		log.Info("image is being pulled", "reference", p.reference, "digest", p.image.Digest.String(), "bytes", s.Bytes, "of", s.Total,
			"bytes_per_second", int64(rate), "layers_done", s.LayersDone, "layers", s.Layers)
	}
}
