// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"path"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/kernel"
	"github.com/cloister-cc/cloister/agent/metrics"
	"github.com/cloister-cc/cloister/image"
	"github.com/cloister-cc/cloister/internal/version"
	"github.com/cloister-cc/cloister/rpc"
	"github.com/cloister-cc/cloister/rpc/trace"
	"github.com/cloister-cc/cloister/storage/volume"
)

// machine is the guest as the agent API shows it; it implements rpc.Machine.
type machine struct {
	kernel.Machine
	seccomp bool
	metrics *metrics.Metrics
}

var _ rpc.Machine = machine{}

func newMachine(s setup, sandbox *agent.Sandbox, images *image.Service) (machine, error) {
	m, err := metrics.New(metrics.Options{
		Version: version.String(), Methods: rpc.Methods(), Containers: sandbox.Containers, Processes: sandbox.Processes,
		Images: func() metrics.Images { return imageMetrics(images) },
	})
	return machine{kernel.Machine{Guest: s.guest}, s.seccomp, m}, err
}

// imageMetrics says what pulls of images do and have done.
func imageMetrics(images *image.Service) metrics.Images {
	totals := images.Totals()
	out := metrics.Images{
		Fetched: totals.Fetched, Unpacked: totals.Unpacked,
		Pulled: totals.Pulled, Cached: totals.Cached, Failed: totals.Failed, Reused: totals.Reused,
	}
	for _, p := range images.Progress() {
		out.Active = append(out.Active, metrics.ImagePull{
			Digest: p.Manifest, Fetched: p.Bytes, Total: p.Total, Unpacked: p.Unpacked, LayersDone: p.LayersDone, Layers: p.Layers,
		})
	}
	layers, space, err := images.Space()
	out.Stored = layers
	if err == nil { // what is not known is left out of the metrics
		out.Total, out.Available = space.Total, space.Free
	}
	return out
}

// Details implements rpc.Machine.
func (m machine) Details() agent.GuestDetails {
	return agent.GuestDetails{
		MemoryBlock:    m.MemoryBlock(),
		MemoryProbe:    m.MemoryProbe(),
		Seccomp:        m.seccomp,
		StorageDrivers: []string{agent.DriverImageGuestPull, volume.DriverEphemeral, volume.DriverLocal},
	}
}

// Metrics implements rpc.Machine.
func (m machine) Metrics() (string, error) { return m.metrics.Text() }

// wrap traces every request and measures it.
func wrap(t *trace.Tracer, m *metrics.Metrics) func(ttrpc.UnaryServerInterceptor) ttrpc.UnaryServerInterceptor {
	return func(next ttrpc.UnaryServerInterceptor) ttrpc.UnaryServerInterceptor {
		return t.Intercept(func(
			ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method,
		) (any, error) {
			start := time.Now()
			answer, err := next(ctx, unmarshal, info, method)
			m.ObserveRPC(path.Base(info.FullMethod), status.Code(err).String(), time.Since(start))
			return answer, err
		})
	}
}
