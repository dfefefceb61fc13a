// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// maxLabel bounds a label value in bytes.
const maxLabel = 256

// label makes s fit to be a label value, which must be UTF-8: names of interfaces and mount points need not be.
func label(s string) string {
	if len(s) > maxLabel {
		s = s[:maxLabel]
	}
	return strings.ToValidUTF8(s, "?")
}

// item is one value of a family whose last label is "item".
type item struct {
	name  string
	value float64
}

// procCollector is a prometheus.Collector that reads the proc file system each time.
type procCollector struct {
	fs     procfs.FS
	root   string
	pid    int
	statfs func(string, *unix.Statfs_t) error
}

// Describe implements prometheus.Collector. Describing nothing makes the collector unchecked: which families there are
// depends on the kernel.
func (*procCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *procCollector) Collect(ch chan<- prometheus.Metric) {
	e := emitter{ch: ch, seen: map[string]bool{}}
	c.agent(e)
	c.guest(e)
	c.filesystems(e)
}

// emitter sends metrics, the same one only once: the registry takes a duplicate for an error.
type emitter struct {
	ch   chan<- prometheus.Metric
	seen map[string]bool
}

func (e emitter) send(typ prometheus.ValueType, name, help string, labels, values []string, v float64) {
	for i := range values {
		values[i] = label(values[i])
	}
	key := name + "\xff" + strings.Join(values, "\xff")
	if e.seen[key] {
		return
	}
	e.seen[key] = true
	e.ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, labels, nil), typ, v, values...)
}

func (e emitter) gauge(name, help string, v float64) {
	e.send(prometheus.GaugeValue, name, help, nil, nil, v)
}

func (e emitter) counter(name, help string, n int64) {
	e.send(prometheus.CounterValue, name, help, nil, nil, float64(n))
}

// items sends gauges that differ in their label "item"; labels and values name and give those before it.
func (e emitter) items(name, help string, labels, values []string, items []item) {
	for _, it := range items {
		e.send(prometheus.GaugeValue, name, help,
			append(append([]string(nil), labels...), "item"), append(append([]string(nil), values...), it.name), it.value)
	}
}
