// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package metrics writes what the agent and its guest measure, in the text format of Prometheus, for GetMetrics.
//
// The families kata_agent_* and kata_guest_* have the names, types, labels and units of Kata Containers
// (docs/design/kata-2-0-metrics.md and what its agent sends in 3.x), so that dashboards made for Kata work. What the
// kernel does not report is left out, where Kata's agent reports 0. The families cloister_agent_* are our own.
//
// The reader of the text is the untrusted host. It cannot make it grow: label values come from fixed sets, from the
// guest's kernel or are digests of images that are being pulled, and devices, mounts, pulls and the text as a whole are bounded.
package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

const (
	// maxText bounds the text in bytes; ttrpc carries at most 4 MiB.
	maxText = 2 << 20
	// other is the label value that stands for all that are not in the fixed set.
	other = "other"
)

// Options says what to measure. The zero value measures the running program on /proc.
type Options struct {
	// ProcRoot is where the proc file system is mounted; empty is /proc.
	ProcRoot string
	// PID is the agent's process id; 0 is that of the program.
	PID int
	// Version is the agent's version.
	Version string
	// Methods are the method names that ObserveRPC tells apart.
	Methods []string
	// Containers and Processes return how many there are now. A nil one is not reported. They must not block.
	Containers, Processes func() int
	// Images returns what pulls of images do and have done. If it is nil, they are not reported. It must not block.
	Images func() Images
}

// Metrics holds what is counted between two calls of Text, and reads the rest when Text is called. Make one with New.
// It is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	scrapes  prometheus.Counter
	rpc      *prometheus.HistogramVec
	methods  map[string]bool
}

// New returns the metrics that o describes. It fails if ProcRoot is no directory.
func New(o Options) (*Metrics, error) {
	return newMetrics(o, unix.Statfs)
}

func newMetrics(o Options, statfs func(string, *unix.Statfs_t) error) (*Metrics, error) {
	if o.ProcRoot == "" {
		o.ProcRoot = procfs.DefaultMountPoint
	}
	if o.PID == 0 {
		o.PID = os.Getpid()
	}
	fs, err := procfs.NewFS(o.ProcRoot)
	if err != nil {
		return nil, fmt.Errorf("open proc file system: %w", err)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		methods:  make(map[string]bool, len(o.Methods)),
		scrapes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kata_agent_scrape_count", Help: "Times that these metrics were asked for.",
		}),
		rpc: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "cloister_agent_rpc_duration_seconds",
			Help:    "Time that requests took, by method and status code.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10},
		}, []string{"method", "code"}),
	}
	for _, method := range o.Methods {
		m.methods[label(method)] = true
	}
	collectors := []prometheus.Collector{m.scrapes, m.rpc, buildInfo(o.Version), &procCollector{
		fs: fs, root: o.ProcRoot, pid: o.PID, statfs: statfs,
	}}
	collectors = append(collectors, counts("containers", "Containers that the agent knows.", o.Containers)...)
	collectors = append(collectors, counts("processes", "Container processes that the agent knows.", o.Processes)...)
	if o.Images != nil {
		collectors = append(collectors, imageCollector{o.Images})
	}
	for _, c := range collectors {
		if err := m.registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func counts(name, help string, count func() int) []prometheus.Collector {
	if count == nil {
		return nil
	}
	opts := prometheus.GaugeOpts{Name: "cloister_agent_" + name, Help: help}
	return []prometheus.Collector{prometheus.NewGaugeFunc(opts, func() float64 { return float64(count()) })}
}

func buildInfo(version string) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "cloister_agent_build_info", Help: "Always 1; the labels tell how the agent was built.",
		ConstLabels: prometheus.Labels{"version": label(version), "goversion": runtime.Version(), "goarch": runtime.GOARCH},
	})
	g.Set(1)
	return g
}

// ObserveRPC counts a request of method that was answered with the status code of that name (as grpc's codes.Code
// prints it) after d. A method that was not among Options.Methods and an unknown code are counted as "other".
func (m *Metrics) ObserveRPC(method, code string, d time.Duration) {
	if !m.methods[method] {
		method = other
	}
	if !isCode(code) {
		code = other
	}
	m.rpc.WithLabelValues(method, code).Observe(d.Seconds())
}

// isCode reports whether s is the name of one of the status codes of gRPC.
func isCode(s string) bool {
	switch s {
	case "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
		"PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented",
		"Internal", "Unavailable", "DataLoss", "Unauthenticated":
		return true
	default:
		return false
	}
}

// Text returns all metrics in the text format 0.0.4 of Prometheus, families sorted by name. A family whose source in the
// proc file system is missing or unreadable is left out.
func (m *Metrics) Text() (string, error) {
	m.scrapes.Inc()
	families, err := m.registry.Gather()
	if err != nil {
		return "", fmt.Errorf("gather metrics: %w", err)
	}
	var text bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			return "", fmt.Errorf("write metrics: %w", err)
		}
		if text.Len() > maxText {
			return "", errors.New("write metrics: they are too long")
		}
	}
	return text.String(), nil
}

// first returns the first n keys of m in their order.
func first[V any](m map[string]V, n int) []string {
	keys := slices.Sorted(maps.Keys(m))
	return keys[:min(n, len(keys))]
}
