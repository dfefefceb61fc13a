// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package metrics

import "github.com/prometheus/client_golang/prometheus"

// maxPulls bounds the pulls that are reported one by one.
const maxPulls = 64

// ImagePull is the pull of an image that is under way.
type ImagePull struct {
	// Digest is that of the image's manifest, which tells pulls apart. A reference would let the host make labels.
	Digest string
	// Fetched is how many of the Total bytes of the layers that are missing have come, and Unpacked how many they have
	// uncompressed so far.
	Fetched, Total, Unpacked int64
	// LayersDone is how many of the image's Layers are in the store.
	LayersDone, Layers int
}

// Images are the pulls of images: those under way, and what all have done together.
type Images struct {
	// Active are the pulls that are under way, of which the first 64 are reported one by one.
	Active []ImagePull
	// Fetched is the number of bytes of layers that have come from registries, and Unpacked how many these layers have had
	// uncompressed.
	Fetched, Unpacked int64
	// Pulled counts images of which layers were fetched, Cached those that were in the store, Failed those that could not
	// be had.
	Pulled, Cached, Failed int64
	// Reused counts the layers of images that were in the store.
	Reused int64
	// Stored is how many bytes the layers in the store take. Total and Available are the bytes of the file system that it
	// lies on; where Total is 0 they are not known.
	Stored, Total, Available int64
}

// imageCollector is a prometheus.Collector that asks for the pulls each time.
type imageCollector struct{ images func() Images }

// Describe implements prometheus.Collector. Describing nothing makes the collector unchecked: pulls come and go.
func (imageCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c imageCollector) Collect(ch chan<- prometheus.Metric) {
	e := emitter{ch: ch, seen: map[string]bool{}}
	i := c.images()
	e.gauge("cloister_agent_image_pulls_active", "Pulls of images that are under way.", float64(len(i.Active)))
	for _, p := range i.Active[:min(maxPulls, len(i.Active))] {
		labels, values := []string{"digest"}, []string{p.Digest}
		e.items("cloister_agent_image_pull_bytes", "Missing layers of the images that are being pulled, in bytes, by digest of the manifest.",
			labels, values, []item{{"fetched", float64(p.Fetched)}, {"total", float64(p.Total)}, {"unpacked", float64(p.Unpacked)}})
		e.items("cloister_agent_image_pull_layers", "Layers of the images that are being pulled, by digest of the manifest.",
			labels, values, []item{{"done", float64(p.LayersDone)}, {"total", float64(p.Layers)}})
	}
	for result, n := range map[string]int64{"pulled": i.Pulled, "cached": i.Cached, "failed": i.Failed} {
		e.send(prometheus.CounterValue, "cloister_agent_image_pulls_total", "Images that were pulled, were in the store, or could not be had.",
			[]string{"result"}, []string{result}, float64(n))
	}
	e.counter("cloister_agent_image_fetched_bytes_total", "Bytes of layers that have come from registries.", i.Fetched)
	e.counter("cloister_agent_image_unpacked_bytes_total", "Bytes that fetched layers have uncompressed.", i.Unpacked)
	e.counter("cloister_agent_image_layers_reused_total", "Layers of images that were in the store.", i.Reused)
	space := []item{{"layers", float64(i.Stored)}}
	if i.Total > 0 {
		space = append(space, item{"total", float64(i.Total)}, item{"available", float64(i.Available)})
	}
	e.items("cloister_agent_image_store_bytes", "Space of the image store's layers and of the file system that it lies on, in bytes.",
		nil, nil, space)
}
